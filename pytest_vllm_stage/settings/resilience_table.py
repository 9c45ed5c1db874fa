"""What a profile promises while the stage changes (``--stage-disrupt``), and the traffic that is sent meanwhile.

::

    [resilience]                      for every disruption of every model
    recovery_s = 60
    window_error_rate = 0.2

    [resilience.rollout]              for one disruption; ``false`` removes an objective
    failed_requests_max = 0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from pytest_vllm_stage.core.suggestions import describe_unknown
from pytest_vllm_stage.settings.disruptions import DISRUPTIONS
from pytest_vllm_stage.settings.slo_tables import ErrorRate, Limit
from pytest_vllm_stage.settings.tables import Positive, PositiveCount, Table, Text, expect, refuse, require_table


def _removed_by_false(value: Any) -> Any:
    return None if value is False else value


MostFailed: TypeAlias = Annotated[
    Annotated[int, Field(ge=0)] | None,
    BeforeValidator(_removed_by_false),
    expect("a whole number from 0, or false to remove the objective"),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"const": False}]}),
]


class DisruptionObjectives(Table):
    """What is promised of the window around one disruption; a key that is not set is taken from `resilience`."""

    recovery_s: Limit = None
    """Seconds from the start of the disruption until every request succeeds again: the highest allowed value."""
    failed_requests_max: MostFailed = None
    """Failed requests in the window: the highest allowed number."""
    window_error_rate: ErrorRate = None
    """Share of failed requests in the window: the highest allowed value."""
    ttft_p99_ms: Limit = None
    """P99 of the TTFT of the window's answered requests, in ms; a slower request also delays the recovery."""

    def limits(self) -> dict[str, float | None]:
        """Key to limit, for the keys that are set; None removes what an outer table has set."""
        keys = DisruptionObjectives.model_fields
        return {key: getattr(self, key) for key in keys if key in self.model_fields_set}


class ResilienceTable(DisruptionObjectives):
    """The traffic during disruptions, and what is promised of the window around each."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, DisruptionObjectives] = Field(init=False)

    request_rate: Positive | None = None
    """Requests per second, sent on a schedule; by default the model's `rate_limit_requests_per_s`."""
    prompt_tokens: PositiveCount = 48
    """Tokens of each prompt as the server counts them, chat template included."""
    output_tokens: PositiveCount = 4
    """Tokens of each answer, exactly."""
    request_timeout_s: Positive = 10.0
    """Seconds from a request's scheduled time to the end of its answer; a slower one counts as failed."""
    before_s: Positive = 5.0
    """Seconds of traffic before the disruption: the stage must serve it without a failure."""
    settle_s: Positive = 5.0
    """Seconds without a failed or slow request after which the stage counts as recovered."""
    longest_s: Positive = 300.0
    """Seconds after the start of a disruption at which its traffic ends in any case."""
    unready_s: Positive = 30.0
    """Seconds for which `readiness` suspends the engine."""
    hold_s: Positive = 10.0
    """Seconds for which `drain` keeps the node cordoned where no other node has room for the pod."""
    roles: Annotated[tuple[Text, ...], Field(strict=False), expect("a list of roles")] = ()
    """The models that are disrupted, by role; by default the first one of the profile."""

    @classmethod
    def check_key(cls, key: str, value: Any) -> None:
        """Refuse a key that is neither one of the table's nor a disruption."""
        known = (*cls.model_fields, *DISRUPTIONS)
        if key not in known:
            refuse(describe_unknown(key, known, "key"), key)
        if key in DISRUPTIONS:
            require_table(value)

    @property
    def disruptions(self) -> Mapping[str, DisruptionObjectives]:
        """The tables of single disruptions, by name."""
        return self.__pydantic_extra__

    def objectives(self, disruption: str) -> dict[str, float]:
        """Key to limit, of one disruption; keys without one are left out."""
        inner = self.disruptions.get(disruption)
        merged = self.limits() | (inner.limits() if inner else {})
        return {key: limit for key, limit in merged.items() if limit is not None}
