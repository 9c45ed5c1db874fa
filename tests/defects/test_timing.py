"""Defects of timing before the simulated engine: a load step without any promise that they break names each of them.

Nightly, as a busy machine adds delays of its own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest

from pytest_vllm_stage.load.driver import run_step
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.verdict import StepVerdict, judge
from tests.defects.proxy.server import Defect, running_proxy
from tests.defects.proxy.timing import GapsDoubled, RateQueued, RateRefused, StallEvery, TtftAdded
from tests.unit.sim_engine import Sim, running_sim

#: Loose: nothing that is planted here breaks them.
OBJECTIVES = (Objective("ttft_p50_ms", 100_000), Objective("error_rate", 1.0))
#: The defect, requests per second, seconds, the finding's name and what it says.
CASES = {
    "added": (TtftAdded, 4, 8, "gateway_ttft", r"adds (9|10|11)\d\d ms to TTFT"),
    "gaps": (
        GapsDoubled,
        4,
        8,
        "gateway_gaps",
        r"tokens reach clients \d+ ms apart on average, the engine",
    ),
    "refused": (RateRefused, 6, 8, "gateway_refusals", r"\d+ of 48 requests were refused with 429"),
    "queued": (RateQueued, 6, 12, "gateway_limit", r"requests are held back in front of the engine"),
    "stalls": (StallEvery, 8, 18, "stalls", r"[34] stalls of up to 1\.\d s, about every [45]\.\d s"),
}


@pytest.fixture(scope="module")
def sim() -> Iterator[Sim]:
    with running_sim("--ttft-ms", "40", "--itl-ms", "25") as engine:
        yield engine


def measure(sim: Sim, defect: type[Defect], rate: float, duration_s: float) -> StepVerdict:
    step = LoadStep(
        "s", "sim", CONSTANT, duration_s, 64, 16, request_rate=rate, warmup_requests=2, request_timeout_s=60
    )
    with running_proxy(sim.url, defect()) as url:
        job = Sim(url).job(step)
        return judge(asyncio.run(run_step(job)), OBJECTIVES)[1]


@pytest.mark.nightly
@pytest.mark.parametrize("name", CASES)
def test_defect_of_timing_is_found_without_a_promise(sim: Sim, name: str) -> None:
    defect, rate, duration_s, finding, says = CASES[name]
    verdict = measure(sim, defect, rate, duration_s)
    texts = {one.name: one.text for one in verdict.findings}
    assert finding in texts, f"{verdict.outcome}: {verdict.why}"
    assert re.search(says, texts[finding]), texts[finding]


@pytest.mark.nightly
def test_gateway_without_a_defect_has_no_finding(sim: Sim) -> None:
    verdict = measure(sim, Defect, 4, 8)
    assert verdict.findings == (), verdict.why


def test_defects_of_timing_name_no_check_of_answers() -> None:
    assert {defect.by for defect, *_ in CASES.values()} == {frozenset()}
