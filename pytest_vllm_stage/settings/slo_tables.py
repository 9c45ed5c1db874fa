"""What a profile promises of its models, and what a run compares with earlier ones.

A key names quantity, percentile, unit and direction::

    [slo]                             for every load step of every model
    error_rate = 0.01

    [models.quantized.slo]            for every load step of this model
    ttft_p99_ms = 500

    [models.quantized.slo.rate-5]     for one load step; ``false`` removes an objective
    e2e_latency_p99_s = 12
    output_tokens_per_s_min = 900
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema

from pytest_vllm_stage.core.suggestions import describe_unknown
from pytest_vllm_stage.settings.tables import (
    Positive,
    Table,
    expect,
    one_of,
    refuse,
    require_list,
    require_unique,
)

_REMOVED: Mapping[str, Any] = {"const": False, "description": "removes the objective of an outer table"}


def _removed_by_false(value: Any) -> Any:
    return None if value is False else value


Limit: TypeAlias = Annotated[
    Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
    BeforeValidator(_removed_by_false),
    expect("a number above 0, or false to remove the objective"),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, _REMOVED]}),
]
ErrorRate: TypeAlias = Annotated[
    Annotated[float, Field(ge=0, lt=1)] | None,
    BeforeValidator(_removed_by_false),
    expect("a share from 0 to below 1, or false to remove the objective"),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, _REMOVED]}),
]


_LATENCIES = {
    "ttft": "time to first token",
    "gateway_added_ttft": "time to first token minus the engine's own mean, which gateways add",
    "itl": "inter-token latency",
    "tpot": "time per output token",
    "e2e_latency": "time from a request's scheduled start to the end of its answer",
}


def _describe_latencies(schema: dict[str, Any]) -> None:
    """Add to the JSON Schema what each latency's key means."""
    for key, value in schema["properties"].items():
        if match := re.fullmatch(r"(.*)_p(\d+)_(m?s)", key):
            value["description"] = (
                f"P{match[2]} of the {_LATENCIES[match[1]]}, in {match[3]}: the highest allowed value."
            )


class ObjectivesTable(Table):
    """Objectives: latencies and the error rate stay at or below their limits, keys in ``_min`` at or above."""

    model_config = ConfigDict(json_schema_extra=_describe_latencies)

    error_rate: ErrorRate = None
    """Share of requests that may fail: the highest allowed value."""
    ttft_p50_ms: Limit = None
    ttft_p90_ms: Limit = None
    ttft_p95_ms: Limit = None
    ttft_p99_ms: Limit = None
    gateway_added_ttft_p50_ms: Limit = None
    itl_p50_ms: Limit = None
    itl_p90_ms: Limit = None
    itl_p95_ms: Limit = None
    itl_p99_ms: Limit = None
    tpot_p50_ms: Limit = None
    tpot_p90_ms: Limit = None
    tpot_p95_ms: Limit = None
    tpot_p99_ms: Limit = None
    e2e_latency_p50_s: Limit = None
    e2e_latency_p90_s: Limit = None
    e2e_latency_p95_s: Limit = None
    e2e_latency_p99_s: Limit = None
    output_tokens_per_s_min: Limit = None
    """Output tokens per second: the lowest allowed value."""
    total_tokens_per_s_min: Limit = None
    """Prompt and output tokens per second: the lowest allowed value."""
    requests_per_s_min: Limit = None
    """Completed requests per second: the lowest allowed value."""
    goodput_requests_per_s_min: Limit = None
    """Requests per second that meet every latency objective of a request: the lowest allowed value."""

    def limits(self) -> dict[str, float | None]:
        """Key to limit, for the keys that are set; None removes what an outer table has set."""
        return {key: getattr(self, key) for key in ObjectivesTable.model_fields if key in self.model_fields_set}


OBJECTIVE_KEYS = tuple(ObjectivesTable.model_fields)
#: What a regression rule can compare: the metrics that objectives bound; the error rate has no noise to compare with,
#: and what a gateway adds is compared with the engine of the same run.
GATED_METRICS = tuple(
    key.removesuffix("_min") for key in OBJECTIVE_KEYS if key not in ("error_rate", "gateway_added_ttft_p50_ms")
)


class SloTable(ObjectivesTable):
    """Objectives of all load steps, and a table per load step (``rate-5``, ``concurrency-10``) that overrides them."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, ObjectivesTable] = Field(init=False)

    horizon_s: Positive = 600.0
    """Seconds for which the load may go on: a latency that rises beyond its limit within them is not a pass."""

    @classmethod
    def check_key(cls, key: str, value: Any) -> None:
        """Refuse a key that is neither an objective nor the table of a load step."""
        known = tuple(cls.model_fields)
        if key not in known and not isinstance(value, Mapping):
            refuse(describe_unknown(key, known, "objective"), key)

    @property
    def steps(self) -> Mapping[str, ObjectivesTable]:
        """The tables of single load steps, by the step's name without its role."""
        return self.__pydantic_extra__


def _require_some(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        refuse("expected at least one metric, got an empty list")
    return values


class RegressionTable(Table):
    """What is compared with earlier runs, and how much worse fails."""

    metrics: Annotated[
        tuple[
            Annotated[
                str,
                one_of(GATED_METRICS, "metric"),
                WithJsonSchema({"enum": list(GATED_METRICS)}),
            ],
            ...,
        ],
        Field(strict=False, json_schema_extra={"uniqueItems": True}),
        BeforeValidator(require_list),
        AfterValidator(_require_some),
        AfterValidator(require_unique),
    ] = ("ttft_p50_ms", "tpot_p50_ms")
    """The compared metrics. Few, since each costs false alarms; medians by default, which noise moves least."""
    worse: Annotated[float, Field(gt=1, allow_inf_nan=False), expect("a factor above 1")] = 1.10
    """The factor by which a metric may be worse than the median of the accepted runs."""
