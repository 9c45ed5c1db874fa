"""Why a container ended while it served, by its status, the events and its log: pure functions."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import messages, probes, runbook
from pytest_vllm_stage.stage.observe.trouble import Logs

#: What vLLM logs before the traceback that ended its engine's process.
_FATAL = re.compile(r"EngineCore (?:encountered a fatal error|failed to start)\.")
#: What vLLM logs of a process that ended without a traceback, for example by SIGKILL.
_EXITED = re.compile(
    r"Worker proc .+ died unexpectedly|engine core (?:exited|proc .+ died) unexpectedly", re.IGNORECASE
)
#: The exception of an engine that one of its workers left; the worker's own line says more.
_EXECUTOR_FAILED = "Executor failed."
#: Process, time and source of a vLLM log line; all lines of a traceback have the same process and source.
_ORIGIN = re.compile(
    r"^(?P<process>\([^)]*\)\s*)?(?:ERROR|WARNING|CRITICAL)\s+\S+\s+(?P<time>\d\d:\d\d:\d\d)\s+(?P<source>\[[^\]]*\])"
)
_PROCESS = re.compile(r"^\(\w+ pid=\d+\)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
#: How long a container runs, and how rarely it restarts, until a restart is no more than history.
LEAST_RUN, LEAST_BETWEEN_RESTARTS = datetime.timedelta(days=1), datetime.timedelta(weeks=1)
#: An error this many lines before a log's end is about a request rather than about the end.
_LAST_LINES = 200


@dataclass(frozen=True)
class EngineDeath:
    """How an engine's process ended, by the log of its container.

    Attributes:
        at: The time of day as the log states it; empty where it states none.
        cause: The cause in one line, with what to do about it where the runbook knows it.
    """

    at: str
    cause: str


def find_engine_death(lines: Iterable[str]) -> EngineDeath | None:
    """The first fatal error of an engine in a log: the later ones follow from it. None where no engine died."""
    read = [_COLOUR.sub("", line) for line in lines]
    fatal = next((number for number, line in enumerate(read) if _FATAL.search(line)), None)
    exited = next((line for line in read if _EXITED.search(line)), None)
    if fatal is not None:
        block = _traceback_after(read, fatal)
        cause = explain_error(block)
        if cause and not (exited and _EXECUTOR_FAILED in cause):
            return EngineDeath(_time_of(read[fatal]), cause)
    if exited is None:
        return None
    return EngineDeath(_time_of(exited), runbook.cut(_text_of(exited)))


def cut_log(lines: list[str], most: int) -> list[str]:
    """The end of a log, with the part around an engine's fatal error where that is further from the end.

    Each request that the engine's death lost has logged a traceback since.
    """
    begin = len(lines) - most
    fatal = next((number for number, line in enumerate(lines) if _FATAL.search(line) or _EXITED.search(line)), begin)
    if begin <= 0 or fatal >= begin:
        return lines[-most:]
    first = max(0, fatal - most // 10)
    part, end = lines[first : first + most // 2], lines[-(most - most // 2) :]
    return [*([f"... {first} lines left out"] if first else []), *part, f"... {begin - first} lines left out", *end]


def _traceback_after(lines: Sequence[str], start: int) -> list[str]:
    """The lines of the traceback that follows a line, without its frames and code."""
    block, origin = [], _origin_of(lines[start])
    for line in lines[start + 1 :]:
        if origin and _origin_of(line) != origin:
            continue  # other processes log in between
        text = _text_of(line)
        if not text[:1].isspace():
            block.append(text)
        # Without an origin nothing marks the end, and the tracebacks of the requests that were lost follow.
        if not origin and messages.is_exception(text):
            break
    return block


def _origin_of(line: str) -> tuple[str, str] | None:
    match = _ORIGIN.match(line)
    return ((match["process"] or "").strip(), match["source"]) if match else None


def _text_of(line: str) -> str:
    """A log line without its prefix, but with its indentation, which frames and code have and exceptions do not."""
    match = _ORIGIN.match(line) or _PROCESS.match(line)
    return line[match.end() :].removeprefix(" ") if match else line


def _time_of(line: str) -> str:
    match = _ORIGIN.match(line)
    return match["time"] if match else ""


def explain_error(lines: Sequence[str]) -> str:
    """The runbook's cause and action for an error in these lines, else its own line; empty where there is none."""
    known = runbook.find_symptom(lines)
    return f"{known.cause}: {known.action}" if known else messages.last_error(lines)


def describe_end(pod: Object, container: Object, events: Iterable[Object], logs: Logs | None, role: str = "") -> str:
    """How a container ended that served, and why, in one line.

    Args:
        pod: Its pod.
        container: Its entry in the pod's status.
        events: Events of the namespace.
        logs: Reads the log of the instance that ended; None where it is not to be read.
        role: The role of the model that it served; empty where it has none.
    """
    name, who = objects.name_of(pod), container["name"]
    ended, previous = find_end(container)
    reason, code = ended.get("reason", "unknown reason"), ended.get("exitCode", "unknown")
    how = f"container {who} of pod {name} {_describe_count(container)} ({reason}, exit code {code})"
    probe = probes.killed_cause(_spec_of(pod, who), _select_about(pod, events)) if previous else None
    how += f": {probe}" if probe else ""
    lines = logs(name, who, previous) if logs else []
    death = find_engine_death(lines)
    if death:
        at = death.at or str(ended.get("finishedAt", ""))[11:19] or "an unknown time"
        return f"engine{f' of {role}' if role else ''} died at {at}: {death.cause}; {how}"
    if probe or reason == "OOMKilled":
        return how
    last = _explain_last_exception(lines)
    return f"{how}; the last error in its log: {last}" if last else how


def _explain_last_exception(lines: Sequence[str]) -> str:
    texts = [_text_of(_COLOUR.sub("", line)) for line in lines[-_LAST_LINES:]]
    found = [text for text in texts if messages.is_exception(text) and not text[:1].isspace()]
    return explain_error(found[-1:])


def find_end(container: Object) -> tuple[Object, bool]:
    """The last end of a container, and whether its log is that of the previous instance; empty where it has none."""
    now = (container.get("state") or {}).get("terminated")
    return (now, False) if now else ((container.get("lastState") or {}).get("terminated") or {}, True)


def has_ended(container: Object) -> bool:
    """Whether a container that should serve has ended, or was restarted."""
    return bool(container.get("restartCount") or (container.get("state") or {}).get("terminated"))


def ended_at_s(container: Object) -> float:
    """When a container ended last, in seconds since the epoch; 0 where its status does not say."""
    ended = find_end(container)[0].get("finishedAt")
    return datetime.datetime.fromisoformat(ended.replace("Z", "+00:00")).timestamp() if ended else 0.0


def is_long_over(pod: Object, container: Object, now: datetime.datetime) -> bool:
    """Whether a container runs for a day since it ended last, and ended less often than once a week of its pod's life.

    A pod that is months old has met a reboot of its node or an upgrade of its kubelet.
    """
    ended_s, created = ended_at_s(container), pod["metadata"].get("creationTimestamp")
    if not ended_s or not created or "running" not in (container.get("state") or {}):
        return False
    age = now - datetime.datetime.fromisoformat(str(created).replace("Z", "+00:00"))
    runs = now - datetime.datetime.fromtimestamp(ended_s, datetime.UTC)
    return runs >= LEAST_RUN and container.get("restartCount", 0) * LEAST_BETWEEN_RESTARTS <= age


def is_removed_long_ago(pod: Object, now: datetime.datetime) -> bool:
    """Whether a pod failed as a whole more than a day ago: an evicted one is listed for as long as it is not deleted.

    Whether another one serves in its place, the number of Ready pods says.
    """
    status = pod.get("status") or {}
    times = [str(one["lastTransitionTime"]) for one in status.get("conditions") or [] if one.get("lastTransitionTime")]
    if status.get("phase") != "Failed" or not times:
        return False
    return now - datetime.datetime.fromisoformat(max(times).replace("Z", "+00:00")) >= LEAST_RUN


def _describe_count(container: Object) -> str:
    if "terminated" in (container.get("state") or {}):
        return "ended and was not restarted yet"
    count = container.get("restartCount", 0)
    return "was restarted once" if count == 1 else f"was restarted {count} times"


def _spec_of(pod: Object, container: str) -> Object:
    return next((dict(one) for one in pod["spec"]["containers"] if one["name"] == container), {"name": container})


def _select_about(item: Object, events: Iterable[Object]) -> list[Object]:
    uid = item["metadata"].get("uid")
    return [event for event in events if (event.get("involvedObject") or {}).get("uid") == uid]
