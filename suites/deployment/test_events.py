"""Does the cluster warn about a problem that still exists?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.checks.stage import members
from pytest_vllm_stage.stage.observe import health

if TYPE_CHECKING:
    from pytest_vllm_stage import StageReader

    Object = dict[str, Any]


def test_no_warning_still_applies(reader: StageReader, declared: list[Object], kubectl: str) -> None:
    """No warning event is about an object of the stage that exists and is still unhealthy.

    Probes that failed while a model loaded are over and do not count, nor does what others run in the namespace.
    """
    found = [item for kind in health.JUDGED_KINDS for item in reader.listed(kind)]
    subjects = members.select_own(found, declared)
    assert subjects, "the namespace holds no object that a warning could be about: nothing was checked"
    lines = health.standing_warnings(reader.events, subjects)
    assert not lines, health.message(
        "a warning still applies", lines, f"{kubectl} get events --field-selector type=Warning"
    )
