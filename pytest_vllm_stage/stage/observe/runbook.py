"""What a log means, by the runbook's symptoms: pure functions over text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pytest_vllm_stage.stage.observe import messages
from pytest_vllm_stage.stage.observe.symptoms import SYMPTOMS

LONGEST_QUOTE = 240
#: Lines that state how a process ended but not why.
_NOISE = re.compile(
    r"^\s*(?:File \"|\^|~|raise |return |self\.|await |with |During handling|The above exception|\.\.\.)"
)


@dataclass(frozen=True)
class FoundSymptom:
    """A symptom that a log shows.

    Attributes:
        cause: The cause in the runbook's terms, with the values of this log.
        action: What to do about it.
    """

    cause: str
    action: str


def find_symptom(lines: Iterable[str]) -> FoundSymptom | None:
    """The symptom that a log shows, or None where no line is known; one listed first wins over a later one."""
    read = [line.strip() for line in lines]
    for symptom in SYMPTOMS:
        for line in read:
            match = symptom.pattern.search(line)
            if match:
                groups = {name: messages.humanize(value or "") for name, value in match.groupdict().items()}
                cause = symptom.cause.format(line=cut(messages.without_log_prefix(line)), **groups)
                return FoundSymptom(cause, symptom.action)
    return None


def cause_of(lines: Iterable[str]) -> str | None:
    """The cause that a log shows, or None where no line is known."""
    found = find_symptom(lines)
    return found.cause if found else None


def cut(text: str, longest: int = LONGEST_QUOTE) -> str:
    """The text on one line, truncated to ``longest`` characters."""
    flat = " ".join(messages.humanize(text).split())
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"


def informative_lines(lines: Iterable[str], most: int) -> list[str]:
    """The last informative lines of a log: no code excerpts of tracebacks, no blank lines."""
    said = [line.rstrip() for line in lines if line.strip() and not _NOISE.match(messages.without_log_prefix(line))]
    return [cut(line, 300) for line in said[-most:]]
