"""What is sent and when: plain data that is decided before the first request goes out.

A step carries its role, its kind of load and its level as fields. Its id is derived from them for people, files and
baselines; nothing reads a field back out of an id, except `role_of_old_step` for files that have no role.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any

from pytest_vllm_stage.core.errors import ConfigError

CONSTANT, POISSON, CLOSED = "constant", "poisson", "closed"
ARRIVALS = (CONSTANT, POISSON, CLOSED)
APIS = ("chat", "completions")


#: Roles and variants become file names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: Fields that no other check looks at, with their types.
_PLAIN_FIELDS: Mapping[str, type] = {
    "id": str,
    "role": str,
    "variant": str,
    "model": str,
    "arrivals": str,
    "api": str,
    "seed": int,
    "decide_early": bool,
}
#: More of anything is a mistake, and overflows what is computed from it.
_LARGEST = 1e9


class LoadKind(StrEnum):
    """What a step's level counts."""

    RATE = "rate"
    CONCURRENCY = "concurrency"


def step_name(kind: LoadKind, level: float) -> str:
    """The name of a load without its role, as the profile's step tables use it: ``rate-5``, ``concurrency-10``."""
    return f"{kind}-{level:g}"


@dataclass(frozen=True)
class LoadStep:
    """One load step against one model.

    Attributes:
        role: The model's role in the profile, or ``endpoint`` for a server that no profile describes.
        model: The served model name.
        arrivals: ``constant`` or ``poisson`` (open loop: requests go out on a schedule, whatever the server does), or
            ``closed`` (closed loop: ``concurrency`` users, each sends when its last answer ended).
        duration_s: How long requests are sent; what is in flight then is awaited, except far past capacity.
        prompt_tokens: Tokens of each prompt as the server counts them, template included.
        output_tokens: Tokens of each answer, exactly.
        request_rate: Requests per second of an open loop.
        concurrency: Users of a closed loop.
        shared_prefix_tokens: How many tokens at the start all prompts have in common; 0 keeps the prefix cache out.
        warmup_requests: Sent and awaited before the step; not measured.
        request_timeout_s: From the scheduled time to the end of the answer; a request that takes longer is a miss.
        seed: Decides prompts and Poisson arrivals.
        api: ``chat`` or ``completions``.
        decide_early: It may end before its whole duration, once its verdict is certain.
        variant: Empty for a step of the plan; else what it was measured for, for example ``rerun-1``.
    """

    role: str
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
    variant: str = ""

    def __post_init__(self) -> None:
        _check_step(self)

    @property
    def open_loop(self) -> bool:
        """Requests go out on a schedule."""
        return self.arrivals != CLOSED

    @property
    def kind(self) -> LoadKind:
        """What `level` counts."""
        return LoadKind.RATE if self.open_loop else LoadKind.CONCURRENCY

    @property
    def level(self) -> float:
        """Requests per second of an open loop, users of a closed one."""
        return float((self.request_rate if self.open_loop else self.concurrency) or 0)

    @property
    def name(self) -> str:
        """The load without the role, for example ``rate-5``."""
        return step_name(self.kind, self.level)

    @property
    def id(self) -> str:
        """Names the step in tests, files and baselines, for example ``quantized-rate-5``."""
        return "-".join(part for part in (self.role, self.name, self.variant) if part)

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
        """The plain data that `step_from_json` reads; the id is there for readers of the file."""
        return {"id": self.id, **asdict(self)}


def step_from_json(data: Mapping[str, Any]) -> LoadStep:
    """Read a step; keys that a later version added are ignored.

    Raises:
        ConfigError: naming the missing or wrong field.
    """
    for name, kind in _PLAIN_FIELDS.items():
        if name in data and not isinstance(data[name], kind):
            raise ConfigError(f"step: {name}: expected {kind.__name__}, got {str(data[name])[:60]!r}")
    known = {field.name for field in fields(LoadStep)}
    values = {key: value for key, value in data.items() if key in known}
    if "role" not in values and "id" in data:
        values["role"] = role_of_old_step(data)
    for name in ("role", "variant"):
        if values.get(name) and not _NAME.fullmatch(values[name]):
            raise ConfigError(f"step: {name}: {values[name]!r} is not a name of letters, digits, '.', '_' and '-'")
    try:
        step = LoadStep(**values)
    except TypeError as error:
        raise ConfigError(f"step: {error}") from None
    if data.get("id", step.id) != step.id:
        raise _wrong(step, "id", f"expected {step.id!r}, which the step's fields give, got {data['id']!r}")
    return step


def role_of_old_step(data: Mapping[str, Any]) -> str:
    """The role of a step that was saved before steps had one.

    Its id was the role and the name of the load, and the load is known from other fields: what precedes exactly this
    name is the role, whatever hyphens it has.

    Raises:
        ConfigError: the id does not end with the name of its own load.
    """
    open_loop = data.get("arrivals") != CLOSED
    level, found = data.get("request_rate" if open_loop else "concurrency"), str(data["id"])
    if isinstance(level, int | float) and not isinstance(level, bool) and abs(level) < _LARGEST:
        ending = "-" + step_name(LoadKind.RATE if open_loop else LoadKind.CONCURRENCY, level)
        if found.endswith(ending) and found != ending:
            return found.removesuffix(ending)
    raise ConfigError(
        f"step: role: is missing, and id {found!r} does not end with the step's own load, as ids of files without a "
        "role do (quantized-rate-5)"
    )


def _check_step(step: LoadStep) -> None:
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
        value = getattr(step, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LARGEST:
            raise _wrong(step, name, f"expected a whole number from 0, got {value!r}")
    if step.shared_prefix_tokens > step.prompt_tokens:
        raise _wrong(step, "shared_prefix_tokens", f"is more than prompt_tokens ({step.prompt_tokens})")
    if step.open_loop and not step.planned_requests:
        raise _wrong(step, "duration_s", f"is too short for one request at {step.request_rate} requests/s")


def _check_positive(step: LoadStep, name: str) -> None:
    value = getattr(step, name)
    whole = name in ("concurrency", "prompt_tokens", "output_tokens")
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right or not 0 < value < _LARGEST:
        raise _wrong(step, name, f"expected {'a whole number' if whole else 'a number'} above 0, got {value!r}")


def _wrong(step: LoadStep, name: str, problem: str) -> ConfigError:
    try:
        label = step.id
    except (TypeError, ValueError, OverflowError):  # the level itself is wrong
        label = step.role
    return ConfigError(f"step {label}: {name}: {problem}")


@dataclass(frozen=True)
class LoadPlan:
    """The steps of one model, which share everything but their load.

    Attributes:
        role: The model's role.
        model: The served model name.
        rates: Open-loop request rates, in requests a second.
        concurrencies: Closed-loop levels.
        base: A step whose lengths, durations and seed the others take over.
        requests_min: A rate whose step would send fewer requests has a longer step.
    """

    role: str
    model: str
    rates: tuple[float, ...]
    concurrencies: tuple[int, ...]
    base: LoadStep
    requests_min: int = 0

    def steps(self) -> list[LoadStep]:
        """Every step, rates first; each with its own seed, so that no two send the same prompt.

        Raises:
            ConfigError: two levels are so close that they have one name.
        """
        arrivals = self.base.arrivals if self.base.open_loop else CONSTANT
        made = [self._step(arrivals, request_rate=rate) for rate in self.rates]
        made += [self._step(CLOSED, concurrency=users) for users in self.concurrencies]
        for number, step in enumerate(made):
            if step.id in [other.id for other in made[:number]]:
                raise ConfigError(f"{self.base.role}: two load steps have the id {step.id}: their levels are too close")
        return [replace(step, seed=self.base.seed + i) for i, step in enumerate(made)]

    def _step(self, arrivals: str, *, request_rate: float | None = None, concurrency: int | None = None) -> LoadStep:
        least_s = self.requests_min / request_rate if request_rate else 0.0
        return replace(
            self.base,
            duration_s=max(self.base.duration_s, least_s),
            role=self.role,
            model=self.model,
            arrivals=arrivals,
            request_rate=request_rate,
            concurrency=concurrency,
        )
