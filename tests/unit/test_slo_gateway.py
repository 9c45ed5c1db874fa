"""What a gateway adds, holds back and refuses shows in a step without any promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from pytest_vllm_stage.measurement.samples import Measurement, Sample, ServerReading
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.gateway import GATEWAY_FINDINGS
from pytest_vllm_stage.slo.objectives import GATEWAY_ADDED_TTFT, Objective
from pytest_vllm_stage.slo.verdict import StepVerdict, judge
from tests.unit.made_samples import failed, measurement, open_step, queued, sample

LOOSE = Objective("ttft_p50_ms", 100_000)


def step_with(
    samples: Sequence[Sample], *, ttft_s: float = 0.1, gap_s: float = 0.01, counted: int | None = None
) -> Measurement:
    """A step at 10 requests/s, with what the engine's counters say of it."""
    n = len(samples) if counted is None else counted
    start = ServerReading(-0.1, 1, 0, ttft_sum_s=50.0, ttft_count=100, token_gap_sum_s=9.0, token_gap_count=900)
    during = [ServerReading(float(second), 1, 0) for second in range(1, len(samples) // 10)]
    end = ServerReading(
        len(samples) / 10 + 5, 0, 0, ttft_sum_s=50.0 + n * ttft_s, ttft_count=100 + n,
        token_gap_sum_s=9.0 + 15 * n * gap_s, token_gap_count=900 + 15 * n,
    )  # fmt: skip
    return measurement(open_step(10, len(samples) / 10), samples, [start, *during, end])


def many(n: int = 200, **changes: float) -> list[Sample]:
    return [sample(i, i / 10, **changes) for i in range(n)]  # type: ignore[arg-type]


#: 9 of 25 users wait for a place in a batch of 16, as a GPU measured it: the engine's mean is far below the median.
FULL_BATCH = [sample(i, i / 10, ttft_s=2.3 if i % 5 > 1 else 0.3) for i in range(200)]
FULL_BATCH_MEAN_S = (3 * 2.3 + 2 * 0.3) / 5


def gateway_findings(made: Measurement) -> dict[str, str]:
    _, verdict = judge(made, [LOOSE])
    return {one.name: one.text for one in verdict.findings if one.name in GATEWAY_FINDINGS}


def gate(made: Measurement, limit: float) -> StepVerdict:
    return judge(made, [Objective(GATEWAY_ADDED_TTFT, limit)])[1]


def test_added_ttft_is_found_with_its_numbers_and_does_not_decide() -> None:
    made = step_with(many(ttft_s=1.1))
    expected = "the way to the engine adds 1000 ms to TTFT: clients wait 1100 ms at P50, the engine takes 100 ms"
    assert gateway_findings(made) == {"gateway_ttft": expected}
    verdict = judge(made, [LOOSE])[1]
    assert verdict.outcome is Outcome.PASS
    assert expected in verdict.why


@pytest.mark.parametrize(
    "made",
    [
        step_with(many()),
        step_with(many(ttft_s=0.14)),
        step_with(many(ttft_s=1.1), counted=400),
        step_with(many(5, ttft_s=1.1)),
        step_with(FULL_BATCH, ttft_s=FULL_BATCH_MEAN_S),
        queued(open_step(5, 60), 4, lambda _dice: 0.6),
        queued(open_step(5, 60), 4, lambda _dice: 5.0),
    ],
    ids=["equal", "network", "other clients", "few", "full batch", "healthy", "overloaded"],
)
def test_what_a_gateway_does_not_do_is_not_found(made: Measurement) -> None:
    assert gateway_findings(made) == {}


def test_what_the_client_itself_adds_is_not_the_gateways() -> None:
    made = step_with(many(ttft_s=0.4))
    assert gateway_findings(made).keys() == {"gateway_ttft"}
    assert gateway_findings(replace(made, client=replace(made.client, loop_lag_p99_ms=300.0))) == {}


def test_longer_token_gaps_than_the_engines_are_found() -> None:
    found = gateway_findings(step_with(many(itl_s=0.03)))
    assert found == {"gateway_gaps": "tokens reach clients 30 ms apart on average, the engine takes 10 ms for each"}


def test_events_of_several_tokens_have_other_gaps_than_tokens() -> None:
    rows = [replace(one, output_tokens=64) for one in many(itl_s=0.03)]
    assert gateway_findings(step_with(rows)) == {}


def test_requests_held_back_in_front_of_an_idle_engine_are_found() -> None:
    rows = [sample(i, i / 10, ttft_s=0.1 + i / 100) for i in range(200)]
    found = gateway_findings(step_with(rows))
    assert found.keys() == {"gateway_ttft", "gateway_limit"}
    assert "requests are held back in front of the engine: 10 at a time" in found["gateway_limit"]
    assert "it runs 1 and none wait" in found["gateway_limit"]


def test_refusals_of_a_limiter_are_found() -> None:
    rows = [failed(i, i / 10, status=429) if i % 4 == 0 else sample(i, i / 10) for i in range(200)]
    found = gateway_findings(step_with(rows, counted=150))
    assert found == {"gateway_refusals": "50 of 200 requests were refused with 429: a limit in front of the engine"}


@pytest.mark.parametrize(("limit", "outcome"), [(500, Outcome.FAIL), (1500, Outcome.PASS)])
def test_objective_on_the_added_ttft_decides(limit: float, outcome: Outcome) -> None:
    rows = [sample(i, i / 10, ttft_s=1.1 + (i % 7) / 100) for i in range(200)]
    verdict = gate(step_with(rows), limit)
    assert verdict.outcome is outcome
    assert f"gateway_added_ttft_p50_ms <= {limit}: 1030, clients wait 1130 ms" in str(verdict)


def test_waiting_for_a_full_batch_is_not_the_gateways() -> None:
    made = step_with(FULL_BATCH, ttft_s=FULL_BATCH_MEAN_S)
    assert gate(made, 100).outcome is Outcome.PASS
    slower = step_with(
        [sample(i, i / 10, ttft_s=3.3 if i % 5 > 1 else 1.3) for i in range(200)], ttft_s=FULL_BATCH_MEAN_S
    )
    assert gate(slower, 100).outcome is not Outcome.PASS
    assert "adds 1000 ms to TTFT: clients wait 2500 ms on average" in gateway_findings(slower)["gateway_ttft"]


def test_objective_without_the_engines_counters_is_inconclusive() -> None:
    verdict = gate(measurement(open_step(10, 20), many()), 100)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "the engine's own TTFT is not known" in verdict.why
