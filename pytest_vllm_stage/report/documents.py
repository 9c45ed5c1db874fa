"""Writes the documents of a run into its directory; nothing that the run itself wrote is changed."""

from __future__ import annotations

from pathlib import Path

from pytest_vllm_stage.report.files import MARKDOWN, PAGE, replace_file
from pytest_vllm_stage.report.html.page import render_page
from pytest_vllm_stage.report.markdown import render_markdown
from pytest_vllm_stage.report.run_data import load_run


def write_reports(directory: Path) -> list[Path]:
    """Write every document; return their paths.

    Raises:
        ConfigError: the directory is not a run that this version reads.
    """
    data = load_run(directory)
    return [
        replace_file(directory / PAGE, render_page(data)),
        replace_file(directory / MARKDOWN, render_markdown(data)),
    ]
