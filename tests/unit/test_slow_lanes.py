"""The lanes of suites/inference that need time, at the length that users have; other tests shorten them."""

from __future__ import annotations

from pytest_vllm_stage.checks.inference import slow_lanes

#: Seconds after which OpenShift's router ends an answer by default.
ROUTER_LIMIT_S = 30.0


def test_lanes_outlast_the_limit_of_openshifts_router() -> None:
    assert slow_lanes.LEAST_S > ROUTER_LIMIT_S
    assert slow_lanes.LEAST_S - slow_lanes.TOLERANCE_S >= ROUTER_LIMIT_S
