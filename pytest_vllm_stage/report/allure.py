"""Allure results: allure-pytest writes them; this module says where, labels them and keeps secrets out.

Without ``--alluredir`` they go into the run directory, and only where a test of the run uses the stage. Each process
that runs tests writes its own results, so that it works alike with and without xdist.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.files import escape_surrogates
from pytest_vllm_stage.core.secret import find_secret_values, redact

_PLUGIN = "allure_pytest"
#: allure-pytest's own name of its listener.
_LISTENER = "allure_listener"
#: A failing answer can be a whole book.
LONGEST_ATTACHMENT = 256 * 1024


def results_dir(config: pytest.Config, run_directory: Path) -> Path:
    """Where the results go: ``--alluredir``, or the run directory."""
    given = config.getoption("allure_report_dir", None)
    return Path(os.path.abspath(given)) if given else run_directory / "allure-results"


def start(config: pytest.Config, run_directory: Path, tags: Callable[[], Iterable[str]]) -> bool:
    """Write results from here on; return whether that is so (``-p no:allure_pytest`` switches it off).

    allure-pytest decides when it is configured whether to write, which is before any test is known. This does the same
    once the tests are known, so that a run without a stage test leaves nothing.
    """
    if not config.pluginmanager.hasplugin(_PLUGIN):
        return False
    import allure_commons
    from allure_commons.logger import AllureFileLogger
    from allure_pytest.listener import AllureListener

    folder = results_dir(config, run_directory)
    registered: list[Any] = [_Results(folder, tags)]
    if not config.pluginmanager.hasplugin(_LISTENER):
        listener = AllureListener(config)
        config.pluginmanager.register(listener, _LISTENER)
        registered += [listener, AllureFileLogger(str(folder))]  # type: ignore[no-untyped-call]
    for plugin in registered:
        allure_commons.plugin_manager.register(plugin)
        config.add_cleanup(partial(allure_commons.plugin_manager.unregister, plugin))
    return True


class _Results:
    """Sees each result before it is written, and each attachment after it."""

    def __init__(self, folder: Path, tags: Callable[[], Iterable[str]]) -> None:
        import allure_commons
        from allure_commons.model2 import Label

        def add_tags(result: Any) -> None:
            result.labels += [Label("tag", tag) for tag in tags()]
            _redact_in_place(result, find_secret_values())

        def redact_attachment(file_name: str) -> Any:
            yield
            path = folder / file_name
            text = path.read_bytes().decode("utf-8", "surrogateescape")
            redacted = redact(text)
            if redacted != text:
                path.write_bytes(redacted.encode("utf-8", "surrogateescape"))

        first, around = allure_commons.hookimpl(tryfirst=True), allure_commons.hookimpl(hookwrapper=True)
        self.report_result = first(lambda result: add_tags(result))
        self.report_container = first(lambda container: _redact_in_place(container, find_secret_values()))
        self.report_attached_data = around(redact_attachment)

        def redact_attached_file(file_name: str) -> Any:
            yield from redact_attachment(file_name)

        self.report_attached_file = around(redact_attached_file)


def _clean(text: str, secrets: Sequence[str]) -> str:
    """The text without secrets, and as UTF-8 can carry it: allure's writer raises on a lone surrogate."""
    return escape_surrogates(redact(text, secrets))


def _redact_in_place(item: Any, secrets: Sequence[str]) -> None:
    """Redact every text of an allure model, nested ones included."""
    for name, value in vars(item).items():
        if isinstance(value, str):
            setattr(item, name, _clean(value, secrets))
        elif isinstance(value, list):
            value[:] = [_clean(entry, secrets) if isinstance(entry, str) else entry for entry in value]
            for entry in value:
                if hasattr(entry, "__attrs_attrs__"):
                    _redact_in_place(entry, secrets)
        elif hasattr(value, "__attrs_attrs__"):
            _redact_in_place(value, secrets)


def step(name: str) -> AbstractContextManager[object]:
    """A step of the test or fixture that runs in this thread; nothing in other threads, which have no test."""
    if threading.current_thread() is not threading.main_thread():
        return nullcontext()
    import allure

    found: AbstractContextManager[object] = allure.step(name)
    return found


def attach(name: str, text: str, kind: str = "TEXT") -> None:
    """Attach a text to the current test, step or fixture; redacted, and a plain one cut where it is long.

    Args:
        name: What it is.
        text: The text.
        kind: Name of one of allure's attachment types: ``TEXT``, ``JSON`` or ``SVG``.
    """
    import allure
    import allure_commons

    if not any(hasattr(plugin, "allure_logger") for plugin in allure_commons.plugin_manager.get_plugins()):
        return
    shown = _clean(text, find_secret_values())
    if kind == "TEXT":  # a part of the others is not readable
        shown = shown[:LONGEST_ATTACHMENT]
    allure.attach(shown, name=name, attachment_type=allure.attachment_type[kind])


def write_environment(data: dict[str, Any], folder: Path) -> None:
    """Write the versions and the run's facts that Allure shows next to the results, where there are results."""
    if not folder.is_dir():
        return
    rows = {
        "run_id": data["run_id"],
        "profile": data["profile"]["name"],
        "simulated": str(data["simulated"]).lower(),
        **data["versions"],
    }
    # A Java properties file: a backslash, a line break and, in keys, a space would have a meaning there.
    lines = [f"{re.sub(r'[^A-Za-z0-9_.-]', '_', key)}={_one_line(str(value))}\n" for key, value in rows.items()]
    (folder / "environment.properties").write_text("".join(lines), encoding="utf-8")


def _one_line(value: str) -> str:
    return " ".join(value.replace("\\", "\\\\").split())
