"""Diagnostics: a short text for the error and the details in a folder; bounded in time and size, redacted."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllm_stage.cluster.api_errors import RequestRejected
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageError
from pytest_vllm_stage.stage import client, objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import container_ends, runbook, trouble
from pytest_vllm_stage.stage.observe.trouble import Trouble

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

Redact = Callable[[str], str]
#: In the text of an error, and in a file.
LINES_SHOWN, LINES_KEPT = 8, 2000
#: Of a container that ended: each request that an engine's death loses adds a traceback of up to 300 lines behind it.
LINES_OF_AN_END = 20_000
LONGEST_FILE = 1024 * 1024
COLLECT_BUDGET_S = 60.0
COLLECTED = (
    "InferenceService", "ServingRuntime", "Deployment", "ReplicaSet", "Job", "Pod", "PersistentVolumeClaim", "Service",
    "ConfigMap", "ResourceQuota", "LimitRange", "Event",
)  # fmt: skip
_TOKENS = re.compile(r"hf_[A-Za-z0-9]{8,}|(?<=Bearer )[A-Za-z0-9._~+/-]{8,}=*|AKIA[A-Z0-9]{12,}")
#: Shorter secret values would redact ordinary words.
SHORTEST_REDACTED = 6


def redactor(kube: DynamicClient, namespace: str) -> Redact:
    """A function that removes the namespace's secret values, and anything that looks like a token, from a text."""
    try:
        held = [
            value for item in objects.listed(kube, "Secret", namespace) for value in (item.get("data") or {}).values()
        ]
    except EnvironmentUnusable:  # not allowed to read them: then only tokens of a known form are recognised
        held = []
    values = {base64.b64decode(value).decode("utf-8", "replace").strip() for value in held}
    known = sorted((value for value in values if len(value) >= SHORTEST_REDACTED), key=len, reverse=True)

    def redact(text: str) -> str:
        for value in known:
            text = text.replace(value, "***")
        return _TOKENS.sub("***", text)

    return redact


class Logs:
    """Reads the logs of a namespace's containers."""

    def __init__(self, kube: DynamicClient, namespace: str, redact: Redact) -> None:
        self._kube, self._namespace, self._redact = kube, namespace, redact

    def __call__(self, pod: str, container: str, previous: bool, lines: int = 200) -> list[str]:
        """The last lines of a log, redacted; empty where there is none or it does not arrive in time."""
        try:
            text = objects.read_log(self._kube, self._namespace, pod, container, previous=previous, lines=lines)
        except (EnvironmentUnusable, RequestRejected):
            return []
        return self._redact(text).splitlines()


def explain(found: Trouble, logs: Logs, warnings: Iterable[Object]) -> str:
    """The cause on the first line, then what to do, the last log lines and the warning events that go with it."""
    parts = [found.cause, *([f"  to do: {found.action}"] if found.action else [])]
    if found.container:
        lines = runbook.informative_lines(logs(found.pod, found.container, found.previous), LINES_SHOWN)
        if lines:
            parts.append(f"  log of pod/{found.pod} container {found.container}, last lines:")
            parts += [f"    {line}" for line in lines]
    warning_lines = event_lines(warnings)[-LINES_SHOWN:]
    if warning_lines:
        parts += ["  warning events:", *[f"    {line}" for line in warning_lines]]
    return "\n".join(parts)


def event_lines(events: Iterable[Object]) -> list[str]:
    """Events in their order, one line per event: count, reason, subject, message."""
    lines = []
    for event in sorted(events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or "")):
        about = event.get("involvedObject") or {}
        subject = f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"
        count = event.get("count") or (event.get("series") or {}).get("count") or 1
        lines.append(f"{event.get('reason')} {subject} (x{count}): {runbook.cut(str(event.get('message', '')))}")
    return lines


def collect(cluster: ClusterFacts, namespace: str, folder: Path) -> None:
    """Write the namespace's objects (no Secrets), events and logs into a folder, within a minute.

    A folder with content is left unchanged: a failed deployment was diagnosed when it failed, and its objects
    may have gone since.

    What cannot be read is listed in ``not-collected.txt`` instead of raised: this runs when something is already wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        return
    try:
        with client.connection(cluster, namespace) as kube:
            missed = _collect(kube, namespace, folder)
    except StageError as error:
        missed = [f"everything: {error}"]
    if missed:
        _write(folder / "not-collected.txt", "\n".join(missed) + "\n")


def _collect(kube: DynamicClient, namespace: str, folder: Path) -> list[str]:
    deadline, redact = time.monotonic() + COLLECT_BUDGET_S, redactor(kube, namespace)
    pods: list[Object] = []
    missed: list[str] = []
    for kind in COLLECTED:
        try:
            items = objects.listed(kube, kind, namespace)
        except (EnvironmentUnusable, RequestRejected) as error:
            missed.append(f"{kind}: {error}")
            continue
        pods = items if kind == "Pod" else pods
        text = "\n".join(event_lines(items)) if kind == "Event" else json.dumps(items, indent=1, default=str)
        _write(folder / f"{kind.lower()}s.{'txt' if kind == 'Event' else 'json'}", redact(text))
    return missed + _collect_logs(pods, Logs(kube, namespace, redact), folder / "logs", deadline)


def _collect_logs(pods: list[Object], logs: Logs, folder: Path, deadline: float) -> list[str]:
    folder.mkdir(exist_ok=True)
    missed = []
    for pod in pods:
        status, name = pod.get("status") or {}, objects.name_of(pod)
        for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
            for previous in (False, True) if container.get("restartCount") else (False,):
                file = f"{name}.{container['name']}{'.previous' if previous else ''}.log"
                if time.monotonic() > deadline:
                    missed.append(f"logs/{file}: no time left")
                    continue
                is_over = previous or "terminated" in (container.get("state") or {})
                lines = logs(name, container["name"], previous, LINES_OF_AN_END if is_over else LINES_KEPT)
                _write(folder / file, "\n".join(container_ends.cut_log(lines, LINES_KEPT)) + "\n")
    return missed


def _write(path: Path, text: str) -> None:
    path.write_text(text if len(text) <= LONGEST_FILE else text[-LONGEST_FILE:], encoding="utf-8")


def warnings_about(items: Iterable[Object], events: list[Object]) -> list[Object]:
    """The warning events about any of the objects."""
    return [event for item in items for event in trouble.warnings_of(item, events)]
