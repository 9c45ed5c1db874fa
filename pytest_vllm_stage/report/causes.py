"""The checks of a run that did not pass, grouped by cause: one failed deployment blocks forty tests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.core.skips import DOES_NOT_APPLY
from pytest_vllm_stage.report.run_data import RunData

_ERROR_LINE = re.compile(r"^E(?:   ?|$)(.*)$")
#: What pytest puts before a failure of an xdist worker.
_WORKER_LINE = re.compile(r"\[gw\d+\] \S+ -- Python ")
_NEXT = re.compile(r"^\s*next: (.+)$")
#: pytest's prefix of a skip's reason; a test that was skipped for a cause has that cause's message after it.
_PREFIX = "Skipped: "
#: Of an exception's name.
_MODULE = re.compile(r"^(?:[a-z_]\w*\.)+(?=[A-Z]\w*: )")
_UNDECIDED = re.compile(r"\b(inconclusive|invalid|suspicious)\b")
#: A failure's text is shown up to this many lines; the whole of it is in junit.xml.
_LINES = 14


@dataclass(frozen=True)
class Cause:
    """A cause of failures, and the checks that failed because of it.

    Attributes:
        headline: The first line of the message.
        message: The message: expected, got, last state.
        next_steps: Commands or advice that the messages name.
        tests: Names of the checks that failed.
        blocked: Names of the checks that did not run because of it.
        error: The set-up or teardown failed, or the environment, not the check.
    """

    headline: str
    message: str
    next_steps: tuple[str, ...]
    tests: tuple[str, ...]
    blocked: tuple[str, ...] = ()
    error: bool = False


@dataclass(frozen=True)
class Gap:
    """Checks without a verdict for the same reason.

    Attributes:
        reason: The reason.
        tests: Their names.
        declared: The profile declares them not applicable.
        undecided: They ran, and the measurement did not decide.
    """

    reason: str
    tests: tuple[str, ...]
    declared: bool
    undecided: bool


def find_causes(data: RunData) -> list[Cause]:
    """The failures of a run: servers that ended, of which others follow, then the one with the most checks."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for test in data.record["tests"]:
        if test["outcome"] in ("failed", "error"):
            groups.setdefault(cause_key(test["reason"]), []).append(test)
    blocked = [test for test in data.record["tests"] if test["outcome"] == "skipped"]
    causes = [_cause(tests, blocked) for tests in groups.values()]
    causes += [_leftover(line) for line in data.record["leftovers"]]
    ends = [Cause(line, line, (), ()) for line in data.record["restarts"]]
    return [*ends, *sorted(causes, key=lambda cause: -len(cause.tests) - len(cause.blocked))]


def _cause(tests: Sequence[Mapping[str, Any]], skipped: Iterable[Mapping[str, Any]]) -> Cause:
    lines = read_message(tests[0]["reason"])
    headline = lines[0]
    steps = dict.fromkeys(step for test in tests for step in _next_steps(test["reason"]))
    headlines = dict.fromkeys(read_message(test["reason"])[0] for test in tests)
    shown = [line for line in lines if not _NEXT.match(line)]
    shown += [other for other in headlines if other != headline]  # the same cause with other numbers
    more = [f"... {len(shown) - _LINES} more lines in junit.xml"] if len(shown) > _LINES else []
    return Cause(
        headline=headline,
        message="\n".join([*shown[:_LINES], *more]),
        next_steps=tuple(steps),
        tests=tuple(str(test["name"]) for test in tests),
        blocked=tuple(str(test["name"]) for test in skipped if _first_line(test["reason"]) == headline),
        error=any(test["outcome"] == "error" for test in tests),
    )


def _leftover(line: str) -> Cause:
    return Cause(f"left behind: {line}", f"The run could not remove: {line}", (), ())


def find_gaps(data: RunData) -> list[Gap]:
    """The checks without a verdict by reason; those that a cause explains are left out."""
    explained = {name for cause in find_causes(data) for name in cause.blocked}
    groups: dict[str, list[str]] = {}
    for test in data.record["tests"]:
        if test["outcome"] == "skipped" and test["name"] not in explained:
            groups.setdefault(_first_line(test["reason"]), []).append(str(test["name"]))
    return [
        Gap(reason, tuple(tests), reason.startswith(DOES_NOT_APPLY), bool(_UNDECIDED.search(reason)))
        for reason, tests in groups.items()
    ]


def read_message(reason: str) -> list[str]:
    """The lines of the error: those that pytest marks with ``E``, otherwise all; never empty."""
    lines = [line for line in reason.splitlines() if not _WORKER_LINE.match(line)]
    marked = [match[1] for line in lines if (match := _ERROR_LINE.match(line))]
    found = [line.rstrip() for line in (marked or lines)]
    while found and not found[0].strip():
        found.pop(0)
    if found:
        found[0] = _MODULE.sub("", found[0].strip()).removeprefix("AssertionError: ").removeprefix("Failed: ")
    return found or ["no message"]


def _first_line(reason: str) -> str:
    return reason.strip().removeprefix(_PREFIX).split("\n", 1)[0]


def _next_steps(reason: str) -> list[str]:
    return [match[1] for line in read_message(reason) if (match := _NEXT.match(line))]


def cause_key(reason: str) -> str:
    """The headline without its numbers and quoted parts: the same cause in two tests differs in these."""
    headline = read_message(reason)[0]
    return re.sub(r"\d+(\.\d+)?([eE][-+]?\d+)?", "#", re.sub(r"'[^']*'|\"[^\"]*\"", "''", headline))[:160]
