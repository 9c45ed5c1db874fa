"""The prompts of this folder's checks, what they need, the slow lanes, and the skip behind an engine that is dead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_vllm_stage import EndpointClient, ModelProfile, does_not_apply
from pytest_vllm_stage.checks.inference.abilities import find_lacks, find_ruled_out
from pytest_vllm_stage.checks.inference.liveness import FirstAnswer, ask_first, select_grammar_backend
from pytest_vllm_stage.checks.inference.releases import describe_lack, read_release
from pytest_vllm_stage.checks.inference.replicas import prepare_counters
from pytest_vllm_stage.checks.inference.slow_lanes import SlowLanes
from pytest_vllm_stage.session.lanes import APART, has_whole_lanes
from pytest_vllm_stage.settings.profile import CAPABILITIES

if TYPE_CHECKING:
    from pytest_vllm_stage import Run, StageConfig

Needs = Callable[..., None]

#: The check that names a dead engine; all others are skipped for it.
NAMES_DEAD_ENGINE = "test_engine_answers"


#: The checks that join the slow lanes, after all others.
JOINS_SLOW_LANES = "test_slow_lanes.py"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow lanes behind the other checks; load steps come after them in any case."""
    items.sort(key=lambda item: item.path.name == JOINS_SLOW_LANES)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A check whose failure quotes that the engine's configuration rules its parameters out does not apply."""
    try:
        return (yield)
    except (Exception, pytest.fail.Exception) as error:
        if reason := find_ruled_out(str(error)):
            does_not_apply(f"the server says: {reason}")
        raise


@pytest.fixture(scope="session")
def _lanes_of_roles() -> Iterator[dict[str, SlowLanes]]:
    lanes: dict[str, SlowLanes] = {}
    yield lanes
    for one in lanes.values():
        one.close()


@pytest.fixture
def slow_lanes(endpoint: EndpointClient, _lanes_of_roles: dict[str, SlowLanes]) -> SlowLanes:
    """The slow lanes of the endpoint, started with the first check that asks for them."""
    role = endpoint.target.role
    return _lanes_of_roles.get(role) or _lanes_of_roles.setdefault(role, SlowLanes(endpoint))


@pytest.fixture(autouse=True)
def _start_slow_lanes(request: pytest.FixtureRequest, _skip_behind_dead_engine: None) -> None:
    """Start them with the first check of an endpoint where they are joined later in this process."""
    is_joined = any(item.path.name == JOINS_SLOW_LANES for item in request.session.items)
    is_elsewhere = hasattr(request.config, "workerinput") and (
        not has_whole_lanes(request.config) or request.path.name in APART
    )
    if is_joined and not is_elsewhere and "endpoint" in request.fixturenames:
        request.getfixturevalue("slow_lanes")


@pytest.fixture(scope="session")
def _first_answers() -> dict[str, FirstAnswer]:
    return {}


@pytest.fixture
def first_answer(endpoint: EndpointClient, _first_answers: dict[str, FirstAnswer]) -> FirstAnswer:
    """What came of the first request to the endpoint, asked once per target."""
    role = endpoint.target.role
    if role not in _first_answers:
        _first_answers[role] = ask_first(endpoint)
        if not _first_answers[role].dead:
            select_grammar_backend(endpoint)
    return _first_answers[role]


@pytest.fixture
def dead_engine(first_answer: FirstAnswer) -> str:
    """How the engine is dead; empty where it answers."""
    return first_answer.dead


@pytest.fixture(scope="session")
def _lacks_of_roles() -> dict[str, dict[str, str]]:
    return {}


@pytest.fixture
def lacks(
    endpoint: EndpointClient,
    first_answer: FirstAnswer,
    model_profile: ModelProfile | None,
    _lacks_of_roles: dict[str, dict[str, str]],
) -> dict[str, str]:
    """Capabilities that the model showed to lack, with the reason, or that its profile says it lacks."""
    role = endpoint.target.role
    if role not in _lacks_of_roles:
        declared = dict(model_profile.cannot) if model_profile else {}
        _lacks_of_roles[role] = find_lacks(endpoint, first_answer, model_profile) | declared
    return _lacks_of_roles[role]


@pytest.fixture(autouse=True)
def _skip_behind_dead_engine(request: pytest.FixtureRequest) -> None:
    """Skip in place of a time-out in every check."""
    if "endpoint" not in request.fixturenames or getattr(request.node, "originalname", "") == NAMES_DEAD_ENGINE:
        return
    reason = request.getfixturevalue("dead_engine")
    if reason:
        pytest.skip(f"the engine is dead: {reason}")


@pytest.fixture(autouse=True)
def _respect_lacks(request: pytest.FixtureRequest, _skip_behind_dead_engine: None) -> Iterator[None]:
    """Skip a check with the first conversation that it sends to a model that has no chat."""
    if "endpoint" not in request.fixturenames:
        yield
        return
    endpoint: EndpointClient = request.getfixturevalue("endpoint")
    lacks: dict[str, str] = request.getfixturevalue("lacks")
    endpoint.reasons = "content" in lacks
    if "chat" in lacks:
        needs: Needs = request.getfixturevalue("needs")
        endpoint.before_chat = lambda: needs("chat")
    yield
    endpoint.reasons, endpoint.before_chat, endpoint.scrapes.on_replicas = False, None, None


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


@pytest.fixture(scope="session")
def _releases_of_roles() -> dict[str, tuple[int, ...] | None]:
    return {}


@pytest.fixture
def release(endpoint: EndpointClient, _releases_of_roles: dict[str, tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """The server's release of vLLM, asked for once per target; None where it names none."""
    role = endpoint.target.role
    if role not in _releases_of_roles:
        _releases_of_roles[role] = read_release(endpoint)
    return _releases_of_roles[role]


@pytest.fixture(scope="session")
def _undecidable_counters() -> dict[str, str]:
    return {}


@pytest.fixture
def judge_counters(
    endpoint: EndpointClient, stage_run: Run, request: pytest.FixtureRequest, _undecidable_counters: dict[str, str]
) -> Callable[[], None]:
    """Lets the endpoint's metrics be those of all replicas; skips where only one of several is seen."""

    def skip(reason: str) -> None:
        pytest.skip(f"inconclusive: {reason}")

    def judge() -> None:
        role, reader = endpoint.target.role, None
        endpoint.scrapes.on_replicas = skip
        # A suite of a user's own may have a stage and no cluster.
        if not stage_run.config.endpoint and stage_run.shared.get("cluster"):
            from pytest_vllm_stage import StageReader

            kube, cluster, stage = (request.getfixturevalue(name) for name in ("kube", "cluster", "stage"))
            reader = StageReader(kube, cluster, stage.namespace)
        # An autoscaler may have changed the replicas since the last check; an address is looked at once.
        if reader is not None or role not in _undecidable_counters:
            _undecidable_counters[role] = prepare_counters(endpoint, reader)
        if _undecidable_counters[role]:
            skip(_undecidable_counters[role])

    return judge


@pytest.fixture
def needs(
    endpoint: EndpointClient,
    lacks: dict[str, str],
    release: tuple[int, ...] | None,
    judge_counters: Callable[[], None],
) -> Needs:
    """Skips a check where the profile says that the model or its server cannot do what the check needs, and why.

    So does what an answer of the model shows for certain. A release of vLLM that is older than the field by which the
    check asks cannot do it either.
    """

    def need(*capabilities: str) -> None:
        for capability in capabilities:
            assert capability in CAPABILITIES, f"{capability} is not a capability; valid: {', '.join(CAPABILITIES)}"
            if reason := lacks.get(capability) or describe_lack(capability, release):
                does_not_apply(f"{endpoint.target.model} cannot do {capability}: {reason}")
        if "metrics" in capabilities:
            judge_counters()

    return need
