"""At each promised request rate and concurrency level the model keeps its objectives.

Request rates up to the promised one must hold; one step above it is measured and shown as an observation. Rates are
sent on a schedule that does not wait for the server, so that a stall is charged to every request that should have been
sent; concurrency levels send when the last answer ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_vllm_stage import Comparison, PlannedStep, StageConfig, StepResult


@pytest.mark.load
def test_objectives(
    load_step: PlannedStep,
    measure_step: Callable[[PlannedStep], StepResult],
    compare_with_baselines: Callable[[StepResult], Comparison | None],
    stage_config: StageConfig,
    record_property: Callable[[str, object], None],
) -> None:
    """The model keeps the objectives of this load step; otherwise the verdict names the broken objective and why.

    With --stage-baselines it is also no slower than in earlier accepted runs.
    """
    result = measure_step(load_step)
    history = compare_with_baselines(result)
    for name, value in (result.properties() | (history.properties() if history else {})).items():
        record_property(name, value)
    broken = [result.text()] if result.outcome == "fail" or (result.undecided and stage_config.strict) else []
    if history and (history.fails or (history.undecided and stage_config.strict)):
        broken.append(history.text())
    if broken:
        pytest.fail("\n".join(broken), pytrace=False)
    if result.undecided:
        pytest.skip(result.text())
