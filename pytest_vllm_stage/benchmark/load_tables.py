"""The load of a profile, as TOML tables: one for all models, and one a model that overrides it key by key.

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

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.measurement.step import CLOSED, CONSTANT, LoadPlan, LoadStep

#: Keys with their defaults; those without one must be set.
REQUIRED = ("duration_s", "prompt_tokens", "output_tokens")
DEFAULTS: Mapping[str, Any] = {
    "rates": (),
    "concurrencies": (),
    "arrivals": CONSTANT,
    "api": "chat",
    "shared_prefix_tokens": 0,
    "warmup_requests": 20,
    "request_timeout_s": 120.0,
}
VALID_KEYS = (*REQUIRED, *DEFAULTS)


def parse_load_plan(
    role: str, model: str, layers: Sequence[tuple[str, Mapping[str, Any]]], *, seed: int, decide_early: bool = False
) -> LoadPlan:
    """The plan of one model.

    Args:
        role: The model's role.
        model: The served model name.
        layers: What each table is called in its file, and the table; later ones override earlier ones key by key.
        seed: Of this run: the same seed sends the same prompts, which a server's prefix cache may still hold.
        decide_early: Steps may end once their verdict is certain.

    Raises:
        ConfigError: naming the table, the key and what is valid.
    """
    merged: dict[str, Any] = dict(DEFAULTS)
    for where, table in layers:
        _check_keys(table, where)
        merged.update(table)
    where = layers[-1][0] if layers else "load"
    for key in REQUIRED:
        if key not in merged:
            raise ConfigError(f"{where}: {key}: is missing")
    if merged["arrivals"] == CLOSED:
        raise ConfigError(f"{where}: arrivals: closed loops are made by concurrencies; valid: constant, poisson")
    rates = _levels(merged.pop("rates"), f"{where}: rates", whole=False)
    concurrencies = _levels(merged.pop("concurrencies"), f"{where}: concurrencies", whole=True)
    # A rate that only makes the base a valid step; every step of the plan brings its own.
    any_rate = max([1.0, *rates]) + 1 / merged["duration_s"] if _is_number(merged["duration_s"], whole=False) else 1.0
    base = LoadStep(f"{role} ({where})", model, request_rate=any_rate, seed=seed, decide_early=decide_early, **merged)
    return LoadPlan(role, model, rates, concurrencies, base)


def _check_keys(table: Mapping[str, Any], where: str) -> None:
    for key in table:
        if key not in VALID_KEYS:
            near = difflib.get_close_matches(key, VALID_KEYS, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(f"{where}: {key} is unknown{meant}; valid keys: {', '.join(VALID_KEYS)}")


def _levels(value: Any, where: str, *, whole: bool) -> tuple[Any, ...]:
    kind = "whole numbers" if whole else "numbers"
    if not isinstance(value, list | tuple) or not all(_is_number(item, whole=whole) for item in value):
        raise ConfigError(f"{where}: must be a list of {kind} above 0, not {value!r}")
    if len(set(value)) != len(value):
        raise ConfigError(f"{where}: has a value twice: {value!r}")
    return tuple(value)


def _is_number(value: Any, *, whole: bool) -> bool:
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    return right and 0 < value < float("inf")
