"""What is sent, and when: plain data that is decided before the first request goes out."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pytest_vllm_stage.core.errors import ConfigError

CONSTANT, POISSON, CLOSED = "constant", "poisson", "closed"
ARRIVALS = (CONSTANT, POISSON, CLOSED)
APIS = ("chat", "completions")


@dataclass(frozen=True)
class Step:
    """One load step against one model.

    Attributes:
        id: Names it in tests, files and baselines, for example ``quantized-rate-5``.
        model: The served model name.
        arrivals: ``constant`` or ``poisson`` (open loop: requests go out on a schedule, whatever the server does), or
            ``closed`` (closed loop: ``concurrency`` users, each sends when its last answer ended).
        duration_s: How long requests are sent; what is in flight then is awaited.
        prompt_tokens: Tokens of each prompt as the server counts them, template included.
        output_tokens: Tokens of each answer, exactly.
        request_rate: Requests a second, of an open loop.
        concurrency: Users, of a closed loop.
        shared_prefix_tokens: How many tokens at the start all prompts have in common; 0 keeps the prefix cache out.
        warmup_requests: Sent and awaited before the step; not measured.
        request_timeout_s: From the scheduled time to the end of the answer; a request that takes longer is a miss.
        seed: Decides prompts and Poisson arrivals.
        api: ``chat`` or ``completions``.
        decide_early: The verdict may come, by a sequential rule, before the whole duration; of open loops only.
    """

    id: str
    model: str
    arrivals: str
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    request_rate: float | None = None
    concurrency: int | None = None
    shared_prefix_tokens: int = 0
    warmup_requests: int = 20
    request_timeout_s: float = 120.0
    seed: int = 1
    api: str = "chat"
    decide_early: bool = False

    def __post_init__(self) -> None:
        _check_step(self)

    @property
    def open_loop(self) -> bool:
        """Requests go out on a schedule."""
        return self.arrivals != CLOSED

    @property
    def planned_requests(self) -> int | None:
        """Samples of an open loop: rate times duration; a closed loop's number is the server's to decide."""
        return round((self.request_rate or 0) * self.duration_s) if self.open_loop else None

    def schedule_s(self) -> list[float]:
        """Send times of an open loop in seconds from the step's start, ascending.

        Poisson arrivals are drawn under the condition that exactly `planned_requests` fall into the step, which makes
        them sorted uniform times: the gaps are as random as a Poisson process', the number of samples is not.
        """
        planned = self.planned_requests
        if planned is None or self.request_rate is None:
            raise ValueError(f"step {self.id} is a closed loop and has no schedule")
        if self.arrivals == CONSTANT:
            return [i / self.request_rate for i in range(planned)]
        random_times = random.Random(f"{self.seed} arrivals")  # noqa: S311 - a schedule, not a secret
        return sorted(random_times.uniform(0, self.duration_s) for _ in range(planned))

    def to_json(self) -> dict[str, Any]:
        """The plain data that `step_from_json` reads."""
        return asdict(self)


def step_from_json(data: Mapping[str, Any]) -> Step:
    """Read a step; keys that a later version added are left out.

    Raises:
        ConfigError: naming the missing or wrong field.
    """
    known = {field.name for field in fields(Step)}
    try:
        return Step(**{key: value for key, value in data.items() if key in known})
    except TypeError as error:
        raise ConfigError(f"step: {error}") from None


def _check_step(step: Step) -> None:
    if step.arrivals not in ARRIVALS:
        raise _wrong(step, "arrivals", f"is {step.arrivals!r}; valid: {', '.join(ARRIVALS)}")
    if step.api not in APIS:
        raise _wrong(step, "api", f"is {step.api!r}; valid: {', '.join(APIS)}")
    wanted, unwanted = ("request_rate", "concurrency") if step.open_loop else ("concurrency", "request_rate")
    if getattr(step, unwanted) is not None:
        raise _wrong(step, unwanted, f"has no meaning for {step.arrivals} arrivals, which take {wanted}")
    for name in (wanted, "duration_s", "prompt_tokens", "output_tokens", "request_timeout_s"):
        _check_positive(step, name)
    for name in ("shared_prefix_tokens", "warmup_requests"):
        if getattr(step, name) < 0:
            raise _wrong(step, name, f"is {getattr(step, name)}; it must be 0 or more")
    if step.shared_prefix_tokens > step.prompt_tokens:
        raise _wrong(step, "shared_prefix_tokens", f"is more than prompt_tokens ({step.prompt_tokens})")
    if step.open_loop and not step.planned_requests:
        raise _wrong(step, "duration_s", f"is too short for one request at {step.request_rate} requests/s")


def _check_positive(step: Step, name: str) -> None:
    value = getattr(step, name)
    whole = name in ("concurrency", "prompt_tokens", "output_tokens")
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right or not 0 < value < math.inf:
        raise _wrong(step, name, f"must be {'a whole number' if whole else 'a number'} above 0, not {value!r}")


def _wrong(step: Step, name: str, problem: str) -> ConfigError:
    return ConfigError(f"step {step.id}: {name}: {problem}")


@dataclass(frozen=True)
class LoadPlan:
    """The steps of one model, which share everything but their load.

    Attributes:
        role: The model's role; step ids begin with it.
        model: The served model name.
        rates: Open-loop request rates, in requests a second.
        concurrencies: Closed-loop levels.
        base: A step whose lengths, durations and seed the others take over.
    """

    role: str
    model: str
    rates: tuple[float, ...]
    concurrencies: tuple[int, ...]
    base: Step

    def steps(self) -> list[Step]:
        """Every step, rates first; each with its own seed, so that no two send the same prompt."""
        arrivals = self.base.arrivals if self.base.open_loop else CONSTANT
        made = [self._step(f"rate-{rate:g}", arrivals=arrivals, request_rate=rate) for rate in self.rates]
        made += [self._step(f"concurrency-{n}", arrivals=CLOSED, concurrency=n) for n in self.concurrencies]
        return [replace(step, seed=self.base.seed + i) for i, step in enumerate(made)]

    def _step(
        self, suffix: str, *, arrivals: str, request_rate: float | None = None, concurrency: int | None = None
    ) -> Step:
        return replace(
            self.base,
            id=f"{self.role}-{suffix}",
            model=self.model,
            arrivals=arrivals,
            request_rate=request_rate,
            concurrency=concurrency,
        )
