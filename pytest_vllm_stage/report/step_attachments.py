"""What the allure result of a load step shows: its verdict, its chart, and its metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.report.html.step_picture import draw_step
from pytest_vllm_stage.report.run_data import read_step
from pytest_vllm_stage.report.slo_matrix import describe_step


def list_attachments(directory: Path, name: str) -> Iterator[tuple[str, str, str]]:
    """Name, text and kind of each attachment; nothing where the step was not measured.

    A file that cannot be read is an attachment with the reason: the result of the test is not changed by it.
    """
    try:
        step = read_step(directory, name)
        if step is None:
            return
        yield f"{name}: verdict", describe_step(step), "TEXT"
        yield f"{name}: metrics and verdict", json.dumps(step.result, indent=1), "JSON"
        if picture := draw_step(step):
            yield f"{name}: requests over time", picture, "SVG"
    except ConfigError as error:
        yield f"{name}: not readable", str(error), "TEXT"
