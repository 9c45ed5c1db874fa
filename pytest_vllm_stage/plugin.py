"""The plugin's hooks. Nothing heavy is imported here: modules for a cluster are imported when a test uses one."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_vllm_stage.core.skips import DOES_NOT_APPLY
from pytest_vllm_stage.run.context import RUN, Run, RunIdentity, new_run_id
from pytest_vllm_stage.run.progress import Progress
from pytest_vllm_stage.session.allure_results import AllureResults
from pytest_vllm_stage.session.exclusive import ExclusiveAccess
from pytest_vllm_stage.session.failures import ReadableFailures
from pytest_vllm_stage.settings.options import OPTIONS, Option
from pytest_vllm_stage.settings.variables import find_misspelt

if TYPE_CHECKING:
    from pytest_vllm_stage.benchmark.plans import PlannedStep
    from pytest_vllm_stage.settings.config import StageConfig

pytest_plugins = ("pytest_vllm_stage.fixtures", "pytest_vllm_stage.session.garbage")

MARKERS = (
    "smoke: fast checks of whether the endpoint is alive and gives plausible answers",
    "load: puts load on an endpoint; runs exclusively, after all other tests",
    "after_load: reads the results of the load steps; runs after all of them",
    "disruptive: changes the stage while traffic runs; runs exclusively, after everything else",
    "real: needs the local cluster or the real engine (tests of this project)",
    "nightly: a slow variant of another test, which runs only with -m nightly (tests of this project)",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare ``--stage-*`` and ``vllm_stage_*``."""
    group = parser.getgroup("vllm-stage", "vLLM serving stage")
    for option in OPTIONS:
        group.addoption(option.cli, dest=option.dest, help=_help(option), default=None, **_arity(option))
        parser.addini(option.ini, help=f"see {option.cli}", default=None)


def _help(option: Option) -> str:
    default = f" (default: {option.default})" if option.default and not option.flag else ""
    return f"{option.help}{default} [${option.env}, ini {option.ini}]"


def _arity(option: Option) -> dict[str, str]:
    """How argparse reads the value; the resolver checks it, so that values of all sources are checked in one place."""
    if option.flag:
        return {"action": "store_const", "const": "true"}
    metavar = option.metavar or "|".join(option.choices)
    if option.bare:
        return {"action": "store", "nargs": "?", "const": option.bare, "metavar": metavar}
    return {"action": "store", "metavar": metavar}


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Check the settings that are given, and register the controller or the worker."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    worker_input: dict[str, str] | None = getattr(config, "workerinput", None)
    if worker_input is None:
        from pytest_vllm_stage.session.controller import Controller

        run_id = new_run_id()
        identity = RunIdentity(run_id, _run_dir(config, run_id), os.getpid())
        progress = _create_progress(config, identity)
        run = config.stash[RUN] = _create_run(config, identity, progress)
        config.pluginmanager.register(Controller(config, run, progress), "vllm-stage-controller")
        # A variable that only switches reports off may be set for a whole environment, including unrelated tests.
        if find_misspelt(os.environ) or any(_given(config, option) for option in OPTIONS if option.name != "report"):
            _ = run.config
        _check_run_dir(run)
    else:
        identity = RunIdentity(
            worker_input["vllm_stage_run_id"],
            worker_input["vllm_stage_run_dir"],
            int(worker_input["vllm_stage_controller_pid"]),
        )
        config.stash[RUN] = _create_run(config, identity, _create_progress(config, identity))
    config.pluginmanager.register(ReadableFailures(config.stash[RUN]), "vllm-stage-failures")
    config.pluginmanager.register(AllureResults(config, config.stash[RUN]), "vllm-stage-allure")
    config.pluginmanager.register(ExclusiveAccess(config.stash[RUN]), "vllm-stage-exclusive-access")


def _create_progress(config: pytest.Config, identity: RunIdentity) -> Progress:
    return Progress(config, Path(identity.run_dir) / "progress")


def _create_run(config: pytest.Config, identity: RunIdentity, progress: Progress) -> Run:
    return Run(identity, lambda: resolve(config), progress, progress)


def resolve(config: pytest.Config) -> StageConfig:
    """Resolve the settings of a pytest session.

    Raises:
        pytest.UsageError: a setting is wrong; the message names it, where it was set and the valid values.
    """
    from pytest_vllm_stage.benchmark import plans
    from pytest_vllm_stage.core.errors import ConfigError
    from pytest_vllm_stage.session.inputs import check_inputs
    from pytest_vllm_stage.settings.resolver import resolve_settings

    try:
        settings = resolve_settings(
            lambda name: config.getoption("vllm_stage_" + name),
            os.environ,
            lambda name: config.getini("vllm_stage_" + name) or None,
            config.rootpath,
        )
        plans.check(settings)
        if not hasattr(config, "workerinput"):
            check_inputs(settings)
        return settings
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize ``model_role`` with the target models, and ``load_step`` with the load steps."""
    if "model_role" in metafunc.fixturenames:
        metafunc.parametrize("model_role", metafunc.config.stash[RUN].config.roles)
    if "load_step" in metafunc.fixturenames:
        _parametrize_load_steps(metafunc, metafunc.config.stash[RUN])


def _parametrize_load_steps(metafunc: pytest.Metafunc, run: Run) -> None:
    """Parametrize with the load steps of the profile's plan, or of the results that are judged again."""
    from pytest_vllm_stage.core.errors import ConfigError

    try:
        found = _find_load_steps(run)
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from None
    if found:
        metafunc.parametrize("load_step", found, ids=[planned.step.id for planned in found])
    else:
        reason = f"{DOES_NOT_APPLY}profile {run.config.profile.name} plans no load: it has no [load] table"
        metafunc.parametrize("load_step", [pytest.param(None, marks=pytest.mark.skip(reason=reason))], ids=["none"])


def _find_load_steps(run: Run) -> list[PlannedStep]:
    if run.config.results:
        from pytest_vllm_stage.benchmark import steps  # with the load drivers, which no plan needs

        return [step for step, _ in steps.saved_steps(run.config)]
    from pytest_vllm_stage.benchmark import plans

    return plans.steps_of(run.config, run.run_id)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the docstring's statement of what the check proves; an attribute of the report is sent by xdist workers."""
    report = yield
    docstring = getattr(getattr(item, "function", None), "__doc__", None) or ""
    vars(report)["proves"] = " ".join(docstring.strip().split("\n\n")[0].split())
    return report


def _given(config: pytest.Config, option: Option) -> bool:
    return bool(config.getoption(option.dest) or os.environ.get(option.env) or config.getini(option.ini))


def _check_run_dir(run: Run) -> None:
    """Refuse a run directory that this run cannot use."""
    occupied = next((path for path in (run.directory, *run.directory.parents) if path.exists()), run.directory)
    if not occupied.is_dir():
        raise pytest.UsageError(f"--stage-run-dir: {occupied} is not a folder")
    if run.active:
        raise pytest.UsageError(f"--stage-run-dir: {run.directory} holds another run's record; name a new folder")


def _run_dir(config: pytest.Config, run_id: str) -> str:
    """The run directory; read without the resolver, since it must be known even where resolving fails."""
    option = next(option for option in OPTIONS if option.name == "run_dir")
    given = config.getoption(option.dest) or os.environ.get(option.env)
    if given:
        return str(config.invocation_params.dir / given)
    return str(config.rootpath / (config.getini(option.ini) or f"reports/{run_id}"))
