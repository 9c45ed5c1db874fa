"""The nested parts of a step's artifact: what a report draws has the written types, or the file is refused by field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.benchmark.artifact_details import find_malformed_detail
from pytest_vllm_stage.benchmark.artifacts import read_result
from pytest_vllm_stage.core.errors import ConfigError
from tests.unit import file_kinds

Object = dict[str, Any]
PERCENTILE = "ttft_p50_ms"


@pytest.fixture
def made(tmp_path: Path) -> Object:
    found: Object = file_kinds.artifact(tmp_path)
    return found


def percentile(**change: Any) -> Callable[[Object], Any]:
    return lambda made: made["metrics"]["percentiles"][PERCENTILE].update(change)


def gate(**change: Any) -> Callable[[Object], Any]:
    return lambda made: made["verdict"]["gates"][0].update(change)


def test_a_written_artifact_is_sound(made: Object) -> None:
    assert made["verdict"]["gates"]
    assert find_malformed_detail(made) is None
    percentile(ci95=[1, "inf"], effective_n=None)(made)
    assert find_malformed_detail(made) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (percentile(ci95=[1.0]), f"metrics.percentiles.{PERCENTILE}.ci95: expected null or two numbers, got 'list'"),
        (percentile(ci95=[1.0, {}]), f"metrics.percentiles.{PERCENTILE}.ci95: expected null or two numbers"),
        (percentile(ci95=0), f"metrics.percentiles.{PERCENTILE}.ci95: expected null or two numbers, got 0"),
        (percentile(n="x"), f"metrics.percentiles.{PERCENTILE}.n: expected a number, got 'x'"),
        (percentile(effective_n=True), f"metrics.percentiles.{PERCENTILE}.effective_n: expected a number, got True"),
        (
            lambda made: made["metrics"]["percentiles"].update({PERCENTILE: 5}),
            f"metrics.percentiles.{PERCENTILE}: expected an object, got 5",
        ),
        (lambda made: made["metrics"].update(percentiles=[]), "metrics.percentiles: expected an object, got 'list'"),
        (gate(needs=[]), "verdict.gates[0].needs: expected a number, got 'list'"),
        (gate(misses="many"), "verdict.gates[0].misses: expected a number, got 'many'"),
        (lambda made: made["verdict"].update(gates=[None]), "verdict.gates[0]: expected an object, got None"),
        (lambda made: made["verdict"].update(gates={}), "verdict.gates: expected a list, got 'dict'"),
    ],
)
def test_a_nested_field_of_another_type_is_refused_by_its_name(
    change: Callable[[Object], Any], message: str, made: Object, tmp_path: Path
) -> None:
    change(made)
    path = tmp_path / "step.json"
    path.write_text(json.dumps(made), encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        read_result(path)
    assert refused.value.message.startswith(f"{path}: {message}")
