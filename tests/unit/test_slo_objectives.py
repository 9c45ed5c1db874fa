"""Objectives as a profile writes them."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.slo.objectives import VALID_KEYS, Objective, goodput_limits_s, merge_objectives, parse_objectives


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
    parsed = [parse_objectives(layers[name], name) for name in ("slo", "model", "step")]
    assert merge_objectives(*parsed) == (Objective("output_tokens_per_s_min", 90), Objective("ttft_p99_ms", 500))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ttft_p99", 1, "slo: ttft_p99 is no objective (did you mean ttft_p99_ms?); valid: error_rate, ttft_p50_ms"),
        ("ttft_p99_ms", "fast", "slo: ttft_p99_ms must be a number, or false to take it away, not 'fast'"),
        ("ttft_p99_ms", True, "must be a number"),
        ("ttft_p99_ms", 0, "ttft_p99_ms must be above 0, not 0"),
        ("ttft_p99_ms", float("inf"), "must be above 0"),
        ("error_rate", 1, "error_rate is a share from 0 to below 1, not 1"),
        ("error_rate", -0.1, "error_rate is a share from 0 to below 1, not -0.1"),
    ],
)
def test_a_wrong_objective_is_refused_by_its_key(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_objectives({key: value}, "slo")
    assert message in str(caught.value)


def test_an_unknown_key_names_every_valid_one() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_objectives({"latency": 1}, "slo")
    assert all(key in str(caught.value) for key in VALID_KEYS)


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
