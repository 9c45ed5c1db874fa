"""Does the cluster warn of something that is still wrong?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_vllm_stage.stage.observe import health

if TYPE_CHECKING:
    from pytest_vllm_stage import StageReader


def test_no_warning_is_still_true(reader: StageReader, kubectl: str) -> None:
    """No warning event is about an object that exists and is still unwell.

    Probes that failed while a model loaded are past, and do not count.
    """
    subjects = [item for kind in health.JUDGED_KINDS for item in reader.listed(kind)]
    assert subjects, "the namespace holds nothing that could be warned of: nothing was checked"
    lines = health.standing_warnings(reader.events, subjects)
    assert not lines, health.message(
        "a warning is still true", lines, f"{kubectl} get events --field-selector type=Warning"
    )
