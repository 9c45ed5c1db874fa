"""Healthy servers of other kinds raise no alarm: other names, adapters, releases, languages, lengths and batches."""

from __future__ import annotations

import pytest

from tests.defects import checks
from tests.defects.proxy.healthy import Adapter, NamedTwice, OlderVllm, OtherLanguage
from tests.defects.proxy.server import Defect, running_proxy
from tests.defects.runner import run_suite, simulator

COUNTING = {checks.METRICS, checks.CACHE_HIT, checks.FREES_SLOT, checks.SERVED_ONCE, checks.ENGINE_ANSWERS}
SERVERS: dict[str, tuple[type[Defect], set[str]]] = {
    "named-twice": (NamedTwice, {*COUNTING, checks.NAMES, checks.LISTED}),
    "adapter": (Adapter, {*COUNTING, checks.DECLARED, checks.LISTED}),
    "older-vllm": (
        OlderVllm,
        {
            *COUNTING,
            checks.BAD_FIELD,
            checks.BAD_JSON,
            checks.OVER_LONG,
            checks.RECOVERS,
            checks.UNKNOWN_MODEL,
            checks.BAD_STRUCTURE,
            checks.CHARACTERS,
            checks.ENGINES_TOKENS,
        },
    ),
    "other-language": (OtherLanguage, {checks.FACT, checks.QUESTION, checks.COMPLETION}),
}


@pytest.mark.parametrize("name", SERVERS)
def test_healthy_server_raises_no_alarm(name: str) -> None:
    server, watched = SERVERS[name]
    with simulator() as engine, running_proxy(engine, server()) as url:
        outcome = run_suite(url, "--stage-model=sim-model", "-k", " or ".join(sorted(watched)))
    assert not outcome.failed, outcome.output
    assert outcome.passed > 2, outcome.output


def test_short_context_raises_no_alarm() -> None:
    watched = {checks.ABANDONED, checks.LARGE_EVENT, checks.LARGE_BODY, checks.CONTEXT, checks.CACHED}
    with simulator(arguments=["--max-model-len", "512"]) as url:
        outcome = run_suite(url, "--stage-model=sim-model", "-k", " or ".join(sorted(watched)))
    assert not outcome.failed, outcome.output
    assert outcome.passed > 3, outcome.output
