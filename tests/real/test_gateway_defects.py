"""A proxy plants defects of gateways before a real vLLM: the inference suite catches each of them and names it.

The quick ones run always, the others with ``-m nightly``. `python -m tests.defects.proxy` does the same before any
running server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.engine import environment, weights
from tests.defects.proxy.__main__ import run_through
from tests.defects.proxy.catalogue import find_defects
from tests.defects.proxy.server import Defect
from tests.defects.runner import Outcome
from tests.real import servers

pytestmark = pytest.mark.real

#: Caught by checks that ask for few tokens, in two or three seconds each.
QUICK = (
    "zeros_dropped",
    "empty_arrays_become_objects",
    "unknown_fields_dropped",
    "unknown_fields_dropped_from_streams",
    "first_stop_text_only",
    "limit_injected",
    "limit_lowered",
    "seed_dropped",
    "choices_dropped",
    "system_prompt_added",
    "numbers_masked",
    "unicode_normalised",
    "firewall_blocks_code",
    "charset_refused",
    "extra_fields_stripped",
    "logprobs_stripped",
    "model_renamed",
    "answers_swapped",
    "usage_chunk_lost",
    "events_merged",
    "deltas_trimmed",
    "double_encoded",
)
DEFECTS = find_defects()
#: As the local stage serves the model.
ARGUMENTS = ("--max-model-len=2048", "--max-num-seqs=8", "--enable-auto-tool-choice", "--tool-call-parser=hermes")
AT_ONCE = 2


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    engine = environment.ensure(Journal())
    model, log = weights.ensure(Journal(), engine)[weights.FULL], tmp_path_factory.mktemp("vllm") / "server.log"
    with servers.vllm(engine, model, weights.FULL, log, "--kv-cache-memory-bytes=384M", *ARGUMENTS) as url:
        yield url


@pytest.fixture(scope="module")
def outcomes(url: str, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Outcome]]:
    """The outcome of each defect of this run, a few at a time."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = [call.params["name"] for call in calls if call and call.params.get("name") in DEFECTS]
    pool = ThreadPoolExecutor(AT_ONCE)
    running = {name: pool.submit(plant, url, DEFECTS[name]) for name in chosen}
    yield lambda name: running[name].result()
    pool.shutdown(cancel_futures=True)


def plant(url: str, defect: type[Defect]) -> Outcome:
    """Run the checks that must catch a defect."""
    return run_through(url, defect(), "-k", " or ".join(sorted(defect.by)), slow=defect.slow)


# README's main job has the same checks on the same engine, and tests/defects on a proxy without a defect.
@pytest.mark.nightly
def test_no_check_fails_behind_a_proxy_without_a_defect(url: str) -> None:
    checks = set().union(*(DEFECTS[name].by for name in QUICK))
    outcome = run_through(url, Defect(), "-k", " or ".join(sorted(checks)))
    assert not outcome.failed, outcome.output
    assert outcome.passed >= len(checks), outcome.output


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.nightly) for name in DEFECTS]
)
def test_gateway_defect_is_caught_and_named(name: str, outcomes: Callable[[str], Outcome]) -> None:
    outcome, defect = outcomes(name), DEFECTS[name]
    missed = defect.by - set(outcome.failed)
    assert not missed, f"missed by {missed}\n{outcome.output}"
    assert any(re.search(defect.says, line) for line in outcome.messages), outcome.output
