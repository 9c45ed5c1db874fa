"""For the project's own tests: skips fail them under CI, and the processes that they start may keep bytecode."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest

from pytest_vllm_stage.core.paths import cache_dir
from tests import order

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import Scheduling


#: None of pytest's own: .ci/run tries failed tests again, and this run not.
SKIPPED_EXIT_CODE = 7


def pytest_configure() -> None:
    """Keep bytecode away from the sources where it is unwanted there, and the pod of a CI runner out of the tests.

    Container images often forbid it. Compiling is then two thirds of each of the hundreds of runs that the tests start.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        os.environ.setdefault("PYTHONPYCACHEPREFIX", str(cache_dir() / "tests" / "bytecode"))
    os.environ.pop("KUBERNETES_SERVICE_HOST", None)
    _choose_examples()


def _choose_examples() -> None:
    """Generate the same examples in every run; slow ones, as on a busy machine, are not a failure."""
    from hypothesis import HealthCheck, settings

    current = settings.get_profile(settings.get_current_profile_name())
    settings.register_profile(
        "tests", current, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start with the slow tests; leave out the nightly ones unless the marker expression or the command names them."""
    items.sort(key=order.find_place)
    if "nightly" in (config.getoption("-m") or "") or any("::" in argument for argument in config.args):
        return
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    if nightly:
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if item not in nightly]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave the thousands of collected tests out of the garbage collector's scans, which each test would pay for."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Distribute real tests by their clusters, and others with the slow ones first."""
    from tests import lanes

    return lanes.make_scheduler(config, log) or order.make_scheduler(config, log)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail under CI where a test was skipped: the skip hides a test that could have run.

    The exit status is its own, whatever failed besides: the failures are tried again, and a skip must not be lost then.
    """
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("CI") == "true" and skipped and not hasattr(session.config, "workerinput"):
        reporter.write_line(f"CI: {len(skipped)} skipped tests fail the run", red=True)
        if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            session.exitstatus = SKIPPED_EXIT_CODE
