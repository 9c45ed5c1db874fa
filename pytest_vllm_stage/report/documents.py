"""Writes the documents of a run into its directory; nothing that the run itself wrote is changed."""

from __future__ import annotations

from pathlib import Path

from pytest_vllm_stage.core.files import atomic_draft, escape_surrogates, write_atomically
from pytest_vllm_stage.report.files import MARKDOWN, METRICS, PAGE
from pytest_vllm_stage.report.html.page import render_page
from pytest_vllm_stage.report.markdown import render_markdown
from pytest_vllm_stage.report.openmetrics import render_metrics
from pytest_vllm_stage.report.run_data import HISTORY, RunData, load_run
from pytest_vllm_stage.slo.baselines import append_baseline

#: Lines of history that a run keeps: fifty runs of twenty steps.
_MOST_LINES = 1000


def write_reports(directory: Path, *, compare: Path | None = None) -> list[Path]:
    """Write every document; return their paths.

    Args:
        directory: The run's.
        compare: Directory of another run, to compare each load step with.

    Raises:
        ConfigError: the directory is not a run that this version reads.
    """
    data = load_run(directory)
    other = load_run(compare) if compare else None
    _keep_history(data)
    texts = {PAGE: render_page(data, other), MARKDOWN: render_markdown(data), METRICS: render_metrics(data)}
    for name, text in texts.items():
        write_atomically(directory / name, escape_surrogates(text))
    return [directory / name for name in texts]


def _keep_history(data: RunData) -> None:
    """Copy the lines that the run was compared with into its directory, once, so that it can be reported anywhere."""
    path = data.directory / HISTORY
    if not data.history or path.exists():
        return
    with atomic_draft(path) as draft:
        for line in data.history[-_MOST_LINES:]:
            append_baseline(draft, line)
