"""Which load steps a run makes, and what is promised of each: the profile's tables, checked before anything is made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.suggestions import describe_unknown
from pytest_vllm_stage.measurement.step import LoadPlan, LoadStep
from pytest_vllm_stage.settings.config import StageConfig
from pytest_vllm_stage.settings.load_table import LoadTable
from pytest_vllm_stage.settings.profile import ModelProfile, Profile
from pytest_vllm_stage.settings.slo_tables import SloTable
from pytest_vllm_stage.settings.urls import ENDPOINT_ROLE
from pytest_vllm_stage.slo.baselines import read_baselines
from pytest_vllm_stage.slo.objectives import Objective, merge_objectives

#: Where no rate above the promised one is planned, this many times the promised one is measured as an observation.
STEP_ABOVE = 2.0


@dataclass(frozen=True)
class PlannedStep:
    """One load step of one model.

    Attributes:
        role: The model's role.
        step: What is sent.
        objectives: What is promised of it, or what an observation is compared with.
        observation: It is beyond what the profile promises: measured and shown, and no reason to fail.
        longest_s: The most seconds of a second measurement, if the first one decides nothing; 0 for none.
    """

    role: str
    step: LoadStep
    objectives: tuple[Objective, ...]
    observation: bool = False
    longest_s: float = 0.0


def steps_of(config: StageConfig, run_id: str) -> list[PlannedStep]:
    """Every load step of the run, in the order of the profile's models; rates before concurrency levels.

    Raises:
        ConfigError: the profile's tables are wrong; names the table, the key and the valid ones.
    """
    return [step for role in config.roles for step in _steps_of_role(config, run_id, role)]


def gates_of(steps: list[PlannedStep]) -> int:
    """How many objectives of the run can fail it; they share the risk of a false fail."""
    return sum(len(planned.objectives) for planned in steps if not planned.observation)


def objectives_of(config: StageConfig, role: str, step_name: str | None = None) -> tuple[Objective, ...]:
    """What is promised of a model's step.

    Args:
        config: The run's.
        role: The model's role; `ENDPOINT_ROLE` has the promises of every model.
        step_name: The step's name without the role, for example ``rate-5``; None for the promises of all its steps.
    """
    model = _model(config, role)
    tables = [config.profile.slo, *([model.slo] if model else [])]
    inner = [table.steps[step_name] for table in tables if step_name and step_name in table.steps]
    return merge_objectives(*(table.limits() for table in (*tables, *inner)))


def horizon_of(config: StageConfig, role: str) -> float:
    """Seconds for which the objectives of a model have to hold."""
    model = _model(config, role)
    overrides = model is not None and "horizon_s" in model.slo.model_fields_set
    return model.slo.horizon_s if model and overrides else config.profile.slo.horizon_s


def check(config: StageConfig) -> None:
    """Refuse wrong tables, and wrong lines of the runs to compare with, now, whichever suites will run.

    Raises:
        ConfigError: see `steps_of`; or names file, line and field.
    """
    roles = dict.fromkeys((*config.profile.models, *config.roles))
    planned = {role: _steps_of_role(config, "check", role) for role in roles}
    known = [one.step.name for steps in planned.values() for one in steps]
    for where, table in _slo_tables(config.profile).items():
        _check_step_names(f"profile {config.profile.source.name}: {where}", table, known)
    folder = config.baselines
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{config.source('baselines')}: {str(folder)!r} is not a folder")
        read_baselines(baselines_file(config, folder))


def baselines_file(config: StageConfig, folder: Path) -> Path:
    """Where the runs of a profile are kept, to be compared with."""
    return folder / f"{config.profile.name}.jsonl"


def saved(config: StageConfig, step: LoadStep) -> PlannedStep:
    """The plan of a step that an earlier run carried out: its own load, and what the profile promises of it now.

    A plain server's step is compared with the profile's model of the name that was served, if there is one.
    """
    role = step.role if step.role in config.profile.models else ENDPOINT_ROLE
    served = [name for name, model in config.profile.models.items() if model.inference_service == step.model]
    promised = served[0] if role == ENDPOINT_ROLE and served else role
    limit = limit_of(config, promised)
    above = limit is not None and step.request_rate is not None and step.request_rate > limit
    return PlannedStep(role, step, objectives_of(config, promised, step.name), above)


def seed_of(config: StageConfig, run_id: str) -> int:
    """The seed of the run's prompts: the one that was given, or one that only this run has."""
    own = int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:4], "big")
    return own if config.load_seed is None else config.load_seed


def base_step(config: StageConfig, run_id: str, role: str) -> LoadStep | None:
    """A step with the model's lengths and durations; None where no load is planned."""
    plan = _plan(config, run_id, role)
    return plan.base if plan else None


def api_of(config: StageConfig, role: str) -> str:
    """The API that a model's load goes to."""
    plan = _plan(config, "", role)
    return plan.base.api if plan else "chat"


def workers_of(config: StageConfig, role: str) -> int:
    """How many pods share a load step of a model with --stage-load-from=cluster."""
    return _load(config, role).workers


def limit_of(config: StageConfig, role: str) -> float | None:
    """The promised requests a second of one instance."""
    model = _model(config, role)
    return model.rate_limit_requests_per_s if model else None


def _model(config: StageConfig, role: str) -> ModelProfile | None:
    """The profile's model; a plain server's is the one that --stage-model names, if it is one of the profile's."""
    if role in config.profile.models:
        return config.profile.models[role]
    named = config.model
    return next((model for model in config.profile.models.values() if model.inference_service == named), None)


def _load(config: StageConfig, role: str) -> LoadTable:
    model = _model(config, role)
    return config.profile.load.override(model.load) if model else config.profile.load


def _slo_tables(profile: Profile) -> dict[str, SloTable]:
    """The tables of objectives, by the names that they have in the file."""
    return {"slo": profile.slo} | {f"models.{role}.slo": model.slo for role, model in profile.models.items()}


def _check_step_names(where: str, table: SloTable, known: list[str]) -> None:
    for name in table.steps:
        if name not in known:
            raise ConfigError(f"{where}.{name}: {describe_unknown(name, dict.fromkeys(known), 'load step')}")


def _plan(config: StageConfig, run_id: str, role: str) -> LoadPlan | None:
    model, load = _model(config, role), _load(config, role)
    if load.is_empty:
        return None
    where = f"profile {config.profile.source.name}: {f'models.{model.role}.load' if model else 'load'}"
    if missing := load.missing_keys():
        raise ConfigError(f"{where}.{missing[0]}: required key is missing")
    values = load.model_dump(exclude={"workers", "second_times"})
    rates, concurrencies, least = (values.pop(key) for key in ("rates", "concurrencies", "requests_min"))
    base = LoadStep(
        f"{role} ({where})",
        model.inference_service if model else ENDPOINT_ROLE,
        # Only makes the base a valid step; every step of the plan has its own level.
        request_rate=max([1.0, *rates]) + 1 / load.duration_s,
        seed=seed_of(config, run_id),
        decide_early=_sees_samples(config) and not config.full_duration,
        **values,
    )
    return LoadPlan(role, base.model, rates, concurrencies, base, least)


def _sees_samples(config: StageConfig) -> bool:
    """The driver hands over each sample when it is complete: neither GuideLLM nor workers in the cluster do."""
    return config.load_driver == "builtin" and config.load_from == "host"


def _steps_of_role(config: StageConfig, run_id: str, role: str) -> list[PlannedStep]:
    plan, limit = _plan(config, run_id, role), limit_of(config, role)
    if plan is None:
        return []
    if limit is not None:
        plan = replace(plan, rates=_with_promise(plan.rates, limit))
    made = []
    for planned in plan.steps():
        above = limit is not None and (planned.request_rate or 0.0) > limit
        objectives = objectives_of(config, role, planned.name)
        longest_s = 0.0 if above else _load(config, role).second_times * planned.duration_s
        made.append(PlannedStep(role, planned, objectives, above, longest_s))
    return made


def _with_promise(rates: tuple[float, ...], limit: float) -> tuple[float, ...]:
    """The rates, the promised one among them, and at least one above it."""
    above = () if any(rate > limit for rate in rates) else (limit * STEP_ABOVE,)
    return tuple(sorted({*rates, limit, *above}))
