"""Which checks of the suites run in one xdist worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_vllm_stage.session.lanes import INPUT, find_lane, has_whole_lanes

ROLES = ["quantized", "full", "full-2"]


@pytest.mark.parametrize(
    ("nodeid", "lane"),
    [
        ("suites/deployment/test_drift.py::test_declared_objects_are_live_unchanged", "deployment"),
        ("suites/inference/test_models.py::test_model_is_listed[full]", "full"),
        ("suites/inference/test_models.py::test_model_is_listed[full-chat]", "full"),
        ("suites/inference/test_models.py::test_model_is_listed[full-2-chat]", "full-2"),
        ("suites/inference/test_relations.py::test_stream_equals_plain[full-chat-text]", "full relations"),
        ("suites/inference/test_relations.py::test_stream_equals_plain[quantized-chat]", "quantized relations"),
        ("suites/inference/test_tools.py::test_tool[full-plain]", "full tools"),
        ("suites/inference/test_streaming.py::test_stream[full-2]", "full-2 tools"),
        ("suites/inference/test_models.py::test_without_a_model", "inference"),
        ("suites/inference/test_models.py::test_model_is_listed[fuller]", "inference"),
        ("suites/slo/test_slo.py::test_objectives[full-rate-5]", "load"),
        ("suites/benchmark/test_jobs.py::test_job[full]", "load"),
        ("suites/registry/test_entities.py::test_version[full]", "load"),
        ("suites/resilience/test_disruptions.py::test_disruption[full]", "load"),
        ("own/test_this.py::test_that[full]", "own/test_this.py::test_that[full]"),
        ("pytest_vllm_stage/suites/inference/test_models.py::test_model_is_listed[full]", "full"),
    ],
)
def test_a_lane_is_a_suite_or_a_model(nodeid: str, lane: str) -> None:
    assert find_lane(nodeid, ROLES) == lane


@pytest.mark.parametrize(
    ("nodeid", "lane"),
    [
        ("suites/slo/test_slo.py::test_objectives[full-rate-5]", "load full"),
        ("suites/slo/test_slo.py::test_objectives[full-2-concurrency-5]", "load full-2"),
        ("suites/slo/test_slo.py::test_objectives[none]", "load"),
        ("suites/registry/test_entities.py::test_version[full]", "load"),
        ("suites/inference/test_models.py::test_model_is_listed[full]", "full"),
    ],
)
def test_load_steps_of_simulated_models_are_lanes_by_model(nodeid: str, lane: str) -> None:
    assert find_lane(nodeid, ROLES, simulated=True) == lane


@pytest.mark.parametrize(
    ("config", "whole"),
    [
        (SimpleNamespace(), True),
        (SimpleNamespace(workerinput={INPUT: "true"}), True),
        (SimpleNamespace(workerinput={}), False),
    ],
    ids=["no xdist", "lanes", "another distribution"],
)
def test_a_worker_runs_whole_lanes_where_the_controller_distributes_by_lanes(config: Any, whole: bool) -> None:
    assert has_whole_lanes(config) is whole
