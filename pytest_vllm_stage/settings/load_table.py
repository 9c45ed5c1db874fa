"""The load of a profile: one table for all models, and one per model that overrides it key by key.

::

    [load]
    rates = [1, 5]
    concurrencies = [1, 5, 10, 25]
    duration_s = 60
    prompt_tokens = 256
    output_tokens = 256

    [models.full.load]
    rates = [1, 5, 10]
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pytest_vllm_stage.settings.tables import (
    Count,
    NotNegative,
    Positive,
    PositiveCount,
    Table,
    expect,
    one_of,
    require_unique,
)

#: Keys that must be set, in ``[load]`` or in the model's own table.
REQUIRED = ("duration_s", "prompt_tokens", "output_tokens")
ARRIVALS = ("constant", "poisson")
APIS = ("chat", "completions")


def _unset() -> int:
    """Stands for a key of `REQUIRED` that is set elsewhere; a factory, so that the JSON Schema shows no default."""
    return 0


class LoadTable(Table):
    """The load steps of a model: their levels, their length, and what their requests look like."""

    rates: Annotated[
        tuple[Positive, ...],
        Field(strict=False, json_schema_extra={"uniqueItems": True}),
        expect("a list of numbers above 0"),
        AfterValidator(require_unique),
    ] = ()
    """Open-loop load steps, in requests per second: requests are sent on a schedule, whatever the server does."""
    concurrencies: Annotated[
        tuple[PositiveCount, ...],
        Field(strict=False, json_schema_extra={"uniqueItems": True}),
        expect("a list of whole numbers above 0"),
        AfterValidator(require_unique),
    ] = ()
    """Closed-loop load steps, in concurrent users that each send when their last answer has ended."""
    duration_s: Positive = Field(default_factory=_unset)
    """Seconds during which a step sends requests; those in flight at its end are awaited, except far past capacity."""
    requests_min: Count = 0
    """Fewest requests of a rate's step: at low rates it sends for longer than `duration_s`."""
    prompt_tokens: PositiveCount = Field(default_factory=_unset)
    """Tokens of each prompt as the server counts them, chat template included."""
    output_tokens: PositiveCount = Field(default_factory=_unset)
    """Tokens of each answer, exactly."""
    arrivals: Annotated[Literal["constant", "poisson"], one_of(ARRIVALS, "arrival process")] = "constant"
    """How the requests of a rate are spread over time."""
    api: Annotated[Literal["chat", "completions"], one_of(APIS, "API")] = "chat"
    """The API that the load is sent to."""
    shared_prefix_tokens: Count = 0
    """Tokens at the start of each prompt that all prompts share; 0 keeps the server's prefix cache out."""
    warmup_requests: Count = 20
    """Requests sent and awaited before a step, unless another one has just ended; they are not measured."""
    request_timeout_s: Positive = 120.0
    """Seconds from a request's scheduled time to the end of its answer; a slower one counts as failed."""
    second_times: NotNegative = 4.0
    """A promised step that is undecided is measured once more, for at most so many times its length; 0 for never."""
    workers: PositiveCount = 2
    """Pods that share each load step with `--stage-load-from=cluster`."""

    @property
    def is_empty(self) -> bool:
        """No key is set."""
        return not self.model_fields_set

    def override(self, inner: LoadTable) -> LoadTable:
        """This table with the keys that another one sets."""
        return self.model_copy(update={key: getattr(inner, key) for key in inner.model_fields_set})

    def shorten(self, most_s: float, requests: int) -> LoadTable:
        """This table with steps of at most so many seconds, or as long as so many requests take."""
        limits: dict[str, float] = {"duration_s": most_s, "requests_min": requests}
        return self.model_copy(update={key: most for key, most in limits.items() if getattr(self, key) > most})

    def missing_keys(self) -> list[str]:
        """The keys that a table with any key still needs to plan a load step."""
        return [key for key in REQUIRED if not self.is_empty and key not in self.model_fields_set]
