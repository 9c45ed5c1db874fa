"""The stage keeps its promises to users while it changes: a rollout, a killed pod, a drained node.

Traffic is sent on a schedule that does not wait for the server, at the promised rate, while the disruption is carried
out. The window around it is judged by the profile's table `resilience`; afterwards the disruption is undone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_vllm_stage import DisruptionResult, StageConfig


@pytest.mark.disruptive
def test_window_keeps_its_objectives(
    disruption: tuple[str, str],
    disrupt: Callable[[str, str], DisruptionResult],
    stage_config: StageConfig,
    record_property: Callable[[str, object], None],
) -> None:
    """Requests fail only in the window around the disruption, as few and as short as the profile promises."""
    result = disrupt(*disruption)
    for name, value in result.properties().items():
        record_property(name, value)
    undecided = result.outcome == "inconclusive"
    if result.outcome == "fail" or (undecided and stage_config.strict):
        pytest.fail(result.text(), pytrace=False)
    if undecided:
        pytest.skip(result.text())
