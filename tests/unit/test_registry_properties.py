"""Typed values, the budget, and the merging of a run's properties with those of others."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.publication import properties
from pytest_vllm_stage.publication.registry import values
from pytest_vllm_stage.publication.registry.write import differences
from tests.unit.made_results import made

TEXT = st.text(max_size=20).filter(lambda text: "\0" not in text and not text.startswith("mlmd-struct::"))
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
RAW = st.one_of(
    st.builds(lambda text: {"metadataType": "MetadataStringValue", "string_value": text}, TEXT),
    st.builds(lambda number: {"metadataType": "MetadataIntValue", "int_value": str(number)}, st.integers(-9, 9)),
    st.builds(lambda flag: {"metadataType": "MetadataBoolValue", "bool_value": flag}, st.booleans()),
)
FOREIGN = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda n: not n.startswith("bench")), RAW, max_size=30
)


@given(value=st.one_of(TEXT, NUMBER))
def test_value_that_was_sent_and_read_back_does_not_differ(value: values.Value) -> None:
    read = json.loads(json.dumps(values.encode(value)))
    assert values.difference(read, value) == ""
    other = value + "x" if isinstance(value, str) else "x"
    assert values.difference(read, other) != ""


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (None, "is missing: expected 12.5"),
        (
            {"metadataType": "MetadataStringValue", "string_value": "12.5"},
            "is a MetadataStringValue (12.5): expected Meta",
        ),
        (
            {"metadataType": "MetadataIntValue", "int_value": "12"},
            "is a MetadataIntValue (12): expected MetadataDouble",
        ),
        ({"metadataType": "MetadataDoubleValue", "double_value": 12}, "is 12: expected 12.5"),
        ({"metadataType": "MetadataDoubleValue", "double_value": True}, "is True: expected 12.5"),
        ({"metadataType": "MetadataDoubleValue"}, "is None: expected 12.5"),
    ],
)
def test_property_that_differs_from_the_number_is_reported(raw: Any, line: str) -> None:
    assert values.difference(raw, 12.5).startswith(line)


def test_a_whole_number_comes_back_without_its_point_and_is_equal() -> None:
    assert values.difference({"metadataType": "MetadataDoubleValue", "double_value": 3}, 3.0) == ""


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "mlmd-struct::x", "a\0b"])
def test_values_that_break_the_server_are_never_sent(value: values.Value) -> None:
    with pytest.raises(ValueError, match="cannot be a property"):
        values.encode(value)


def test_a_struct_that_was_read_is_sent_as_base64() -> None:
    read = {"metadataType": "MetadataStructValue", "struct_value": '{"a": 1}'}
    sent = values.to_send(read)
    assert json.loads(base64.b64decode(sent["struct_value"])) == {"a": 1}
    assert values.same(read, {**read, "struct_value": '{"a":1}'})
    assert not values.same(read, {**read, "struct_value": '{"a":2}'})


@given(foreign=FOREIGN)
def test_merging_keeps_properties_of_others_and_replaces_ours(foreign: dict[str, Any]) -> None:
    """Whatever is there: others' stay as they are, ours are the run's, and what is ours of another run goes."""
    results = made(1.0)
    stale = properties.step_property("rate", 99.0, "ttft_p99")
    there = foreign | {stale: values.encode(1.0), properties.RUN: values.encode("another run")}
    if len(foreign) + len(properties.PROVENANCE) >= properties.BUDGET:
        with pytest.raises(StageFailure, match="there is no room"):
            properties.within_budget(results.values, foreign, "version v")
        return
    wanted = properties.within_budget(results.values, foreign, "version v")
    merged = properties.merged(there, wanted)
    assert {name: raw for name, raw in merged.items() if name in foreign} == foreign
    assert set(merged) == {*foreign, *wanted}
    assert len(merged) <= properties.BUDGET
    assert list(wanted) == list(results.values)[: len(wanted)]
    assert differences(merged, wanted) == []
    assert f"{stale} is of another run" in differences(there, wanted)


def test_the_budget_cuts_from_the_end_of_the_declared_priority() -> None:
    results = made(1.0, 5.0, 10.0)
    wanted = properties.within_budget(results.values, ["build"], "version v")
    left_out = [name for name in results.values if name not in wanted]
    assert len(wanted) == 23
    assert left_out[0] == "benchmark_rate_10_latency_mean"
    assert {name.rsplit("_", 2)[-2] + "_" + name.rsplit("_", 2)[-1] for name in left_out[1:]} == {
        "ttft_p50",
        "ttft_p90",
    }


def test_25_properties_of_others_leave_no_room_and_are_named() -> None:
    with pytest.raises(StageFailure) as caught:
        properties.within_budget(made().values, [f"build-{i}" for i in range(25)], "version w4a16 of model m")
    assert "version w4a16 of model m has 25 custom properties of others" in caught.value.message
    assert "build-24" in caught.value.message
    assert "the results are kept in the bucket" in caught.value.hint


def test_a_name_that_differs_in_case_only_is_refused() -> None:
    with pytest.raises(StageFailure, match="'Benchmark_Test_Run' and 'benchmark_test_run'"):
        properties.within_budget(made().values, ["Benchmark_Test_Run"], "version v")


@pytest.mark.parametrize(
    "name", ["benchmark_rate_0.5_ttft_p99", "benchmark_concurrency_10_verdict", "benchmark_test_run"]
)
def test_ours_are_known_by_their_names(name: str) -> None:
    assert properties.is_ours(name)


@pytest.mark.parametrize("name", ["benchmark_rate_5_colour", "benchmark_suite", "my_benchmark_test_run", "accuracy"])
def test_similar_names_are_not_ours(name: str) -> None:
    assert not properties.is_ours(name)
