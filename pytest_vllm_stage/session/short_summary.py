"""pytest's short summary names the cause of each failure, whole, and a cause that several tests share once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from pytest_vllm_stage.report.causes import cause_key, read_message

#: From this verbosity on, pytest prints the whole message of a report instead of cutting it to the terminal's width.
_WHOLE_MESSAGES = 2
SHARED = "the same cause as {first}"
#: So many failures push the run's summary off the screen.
_SCREEN = 20


def show_causes(config: pytest.Config, reports: Iterable[Any]) -> None:
    """Replace the failures' texts, which pytest has printed already, by their causes for the short summary.

    pytest cuts what it prints there to the terminal's width, and the ids of most checks leave no room for a cause.
    """
    first_of: dict[str, str] = {}
    for report in reports:
        key = cause_key(report.longreprtext)
        cause = read_message(report.longreprtext)[0]
        report.longrepr = SHARED.format(first=first_of[key]) if key in first_of else cause
        first_of.setdefault(key, report.nodeid.rpartition("::")[2])
    if 0 <= config.option.verbose < _WHOLE_MESSAGES:
        config.option.verbose = _WHOLE_MESSAGES


def find_lost_lines(summary: Iterable[str], failures: int) -> list[str]:
    """The lines of the run's summary that say which engine died and of what, where the list of failures hides them."""
    lost: list[str] = []
    inside = False
    for line in summary if failures > _SCREEN else ():
        inside = line.startswith("RESTARTED ") or (inside and line.startswith(" "))
        lost += [line] if inside else []
    return lost
