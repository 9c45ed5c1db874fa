"""The prompts of this folder's checks, the capabilities that they need, and the skip behind an engine that is dead."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from pytest_vllm_stage import EndpointClient, ModelProfile, does_not_apply
from pytest_vllm_stage.checks.inference.liveness import find_dead_engine
from pytest_vllm_stage.settings.profile import CAPABILITIES

if TYPE_CHECKING:
    from pytest_vllm_stage import StageConfig

Needs = Callable[..., None]

#: The check that names a dead engine; all others are skipped for it.
NAMES_DEAD_ENGINE = "test_engine_answers"


@pytest.fixture(scope="session")
def _dead_engines() -> dict[str, str]:
    return {}


@pytest.fixture
def dead_engine(endpoint: EndpointClient, _dead_engines: dict[str, str]) -> str:
    """How the engine is dead, found once per target; empty where it answers."""
    if endpoint.target.role not in _dead_engines:
        _dead_engines[endpoint.target.role] = find_dead_engine(endpoint)
    return _dead_engines[endpoint.target.role]


@pytest.fixture(autouse=True)
def _skip_behind_dead_engine(request: pytest.FixtureRequest) -> None:
    """Skip in place of a time-out in every check."""
    if "endpoint" not in request.fixturenames or getattr(request.node, "originalname", "") == NAMES_DEAD_ENGINE:
        return
    reason = request.getfixturevalue("dead_engine")
    if reason:
        pytest.skip(f"the engine is dead: {reason}")


@pytest.fixture
def counting() -> str:
    """A request whose greedy answer is long and certain.

    Counting leaves a model no near ties between next tokens, so that the answer at temperature 0 does not depend on the
    rounding of a batch, even where the server promises nothing for close calls.
    """
    return "Write the numbers from 1 to 100, separated by commas."


@pytest.fixture
def model_profile(endpoint: EndpointClient, stage_config: StageConfig) -> ModelProfile | None:
    """What the profile says of the model under check; None where it does not know it."""
    return stage_config.profile.find_model(endpoint.target.role, endpoint.target.model)


@pytest.fixture
def needs(model_profile: ModelProfile | None) -> Needs:
    """Skips a check where the profile says that the model or its server cannot do what the check needs, and why."""

    def need(*capabilities: str) -> None:
        for capability in capabilities:
            assert capability in CAPABILITIES, f"{capability} is not a capability; valid: {', '.join(CAPABILITIES)}"
            reason = model_profile.cannot.get(capability) if model_profile else None
            if model_profile and reason:
                does_not_apply(f"{model_profile.inference_service} cannot do {capability}: {reason}")

    return need
