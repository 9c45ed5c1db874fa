"""Objectives as a profile writes them."""

from __future__ import annotations

import tomllib

from pytest_vllm_stage.settings.slo_tables import SloTable
from pytest_vllm_stage.slo.objectives import Objective, goodput_limits_s, merge_objectives


def test_layers_override_key_by_key_and_false_takes_away() -> None:
    layers = tomllib.loads(
        """
        [slo]
        error_rate = 0.01
        ttft_p99_ms = 900
        [model]
        ttft_p99_ms = 500
        [step]
        error_rate = false
        output_tokens_per_s_min = 90
        """
    )
    parsed = [SloTable.model_validate(layers[name]).limits() for name in ("slo", "model", "step")]
    assert merge_objectives(*parsed) == (Objective("output_tokens_per_s_min", 90), Objective("ttft_p99_ms", 500))


def test_what_an_objective_means() -> None:
    ttft, e2e = Objective("ttft_p95_ms", 250), Objective("e2e_latency_p50_s", 3)
    assert (ttft.latency, ttft.limit_s, ttft.allowed_share, ttft.is_floor) == ("ttft", 0.25, 0.05, False)
    assert (e2e.limit_s, e2e.allowed_share) == (3, 0.5)
    assert Objective("error_rate", 0.02).allowed_share == 0.02
    floor = Objective("output_tokens_per_s_min", 100)
    assert (floor.is_floor, floor.metric, floor.text()) == (True, "output_tokens_per_s", "output_tokens_per_s >= 100")


def test_goodput_counts_against_the_strictest_limit_that_a_request_has() -> None:
    objectives = (Objective("ttft_p50_ms", 100), Objective("ttft_p99_ms", 500), Objective("itl_p99_ms", 20))
    assert goodput_limits_s(objectives) == {"ttft": 0.1}
