"""The chart of one load step as a picture of its own, for readers other than the page."""

from __future__ import annotations

import warnings

from pytest_vllm_stage.report.html import svg
from pytest_vllm_stage.report.html.request_panels import RequestPanels, tracks_of
from pytest_vllm_stage.report.run_data import StepData


def draw_step(step: StepData) -> str | None:
    """The chart as an SVG document; None without matplotlib or without samples.

    Raises:
        ConfigError: the file of samples is not valid.
    """
    measurement = step.measurement()
    if not svg.available() or measurement is None or not measurement.samples:
        return None
    with warnings.catch_warnings(), svg.drawing():
        warnings.simplefilter("ignore")  # the tests of a run may turn warnings into errors
        picture = RequestPanels(tracks_of(measurement)).draw(step, measurement)
    return svg.make_document(picture, f"{step.role}, {step.load}: every request, and the engine under it")
