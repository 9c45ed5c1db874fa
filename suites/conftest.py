"""How the suites' checks are reported: a failure by its message, and labels for Allure's behaviours view."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_stage import StageError
from pytest_vllm_stage.run.context import RUN

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import Scheduling

SUITES = Path(__file__).parent
EPIC = "vLLM serving stage"
#: Values of --tb with which a failed check is shown by its message; the others show pytest's traceback.
BRIEF_STYLES = ("auto", "short", "line")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the labels before allure-pytest selects tests by them (``--allure-features=inference``)."""
    labels: dict[Path, list[pytest.MarkDecorator]] = {}
    for item in items:
        if item.path not in labels:
            labels[item.path] = _create_labels(item.path) if item.path.is_relative_to(SUITES) else []
        for label in labels[item.path]:
            item.add_marker(label)


def _create_labels(path: Path) -> list[pytest.MarkDecorator]:
    story = path.stem.removeprefix("test_").replace("_", " ")
    values = {"epic": EPIC, "feature": path.parent.name, "story": story}
    return [pytest.mark.allure_label(value, label_type=kind) for kind, value in values.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """Distribute the checks by lanes."""
    from pytest_vllm_stage.session.lanes_scheduling import make_scheduler

    return make_scheduler(config, log, config.stash[RUN].config)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass on to a worker how it gets its checks."""
    from pytest_vllm_stage.session import lanes

    if node.config.getoption("dist") == "load":
        node.workerinput[lanes.INPUT] = "true"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show a failed check by its message and its place: the check's source and fixtures say nothing about the stage."""
    report = yield
    if call.excinfo and report.failed and item.config.getoption("tbstyle") in BRIEF_STYLES:
        message = read_message(call.excinfo.value)
        if message:
            report.longrepr = f"{message}\n  at {find_place(item, call.excinfo)}"
    return report


def read_message(error: BaseException) -> str:
    """The message that the check wrote, without pytest's explanation of its assertion; empty if it wrote none."""
    if not getattr(error, "pytrace", True):
        return ""  # pytest shows it by its message alone
    if isinstance(error, StageError):
        text = f"{error.kind}: {error}"
    elif isinstance(error, (AssertionError, pytest.fail.Exception)):
        text = str(error)
    else:
        return ""
    lines = text.splitlines()
    explanation = next((number for number, line in enumerate(lines) if line.startswith("assert ")), len(lines))
    written = [*lines[:explanation], *getattr(error, "__notes__", [])] if explanation else []
    return "\n".join(written)


def find_place(item: pytest.Item, failure: pytest.ExceptionInfo[BaseException]) -> str:
    """The line of the suite that failed, as ``path:line``."""
    entries = [entry for entry in failure.traceback if Path(entry.path).is_relative_to(SUITES)]
    if not entries:
        return item.nodeid
    path = Path(entries[-1].path)
    root = item.config.rootpath
    return f"{path.relative_to(root) if path.is_relative_to(root) else path}:{entries[-1].lineno + 1}"
