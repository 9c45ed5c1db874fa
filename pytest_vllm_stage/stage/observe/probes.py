"""What a pod's probes say: pure functions over a container's specification, its events and its log."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import messages, runbook

#: How HTTP servers announce their address (uvicorn, vLLM); engines log the ports of their own processes too.
_LISTENING = re.compile(r"(?:running|server|[Ll]istening)\b.*\bon https?://(?:\[[^\]]*\]|[^\s:/]+):(\d{2,5})\b")
_STATUS = re.compile(r"statuscode: (\d{3})")


def unready_cause(container: Object, warnings: Iterable[Object], log: Callable[[], list[str]]) -> str | None:
    """Why a running container can never become ready; None where it may only need more time.

    A refused connection, a timeout or a 5xx is what a server shows while it loads a model. A 4xx, or a port other than
    the one that the log announces, does not change by waiting.
    """
    events = [event for event in warnings if event.get("reason") == "Unhealthy"]
    for kind in ("Startup", "Readiness"):
        errored = _last_message(events, f"{kind} probe errored", container)
        port = _port(container, kind)
        if errored and port and not port.isdecimal():
            declared = ", ".join(str(one.get("name", one.get("containerPort"))) for one in container.get("ports") or [])
            return (
                f"{describe_probe(container, kind)} names port {port}, which container {container['name']} does not "
                f"declare (declared: {declared or 'none'})"
            )
        if errored:
            return f"{describe_probe(container, kind)} cannot run: {runbook.cut(messages.innermost(errored))}"
        message = _last_message(events, f"{kind} probe failed", container)
        status = _STATUS.search(message)
        if status and status[1].startswith("4"):
            announced = _listening_ports(log())
            note = f"; the log says it listens on :{announced[-1]}" if announced else ""
            return f"{describe_probe(container, kind)} answers {status[1]}{note}"
        if "connection refused" in message:
            announced, port = _listening_ports(log()), _port(container, kind)
            if announced and port and port not in announced:
                probe = describe_probe(container, kind)
                return f"{probe} is refused; the log says it listens on :{announced[-1]}"
    return None


def killed_cause(container: Object, events: Iterable[Object]) -> str | None:
    """The probe that restarts a container; None where none does."""
    known = list(events)
    for kind in ("Liveness", "Startup"):
        if _last_message(known, f"failed {kind.lower()} probe", container):
            failure = _last_message(known, f"{kind} probe failed", container).partition(": ")[2]
            reason = f": {' '.join(failure.split())[:160]}" if failure else ""
            return f"{describe_probe(container, kind)} restarts container {container['name']}{reason}"
    return None


def describe_probe(container: Object, kind: str) -> str:
    """The probe in a few words: ``readiness probe GET :8080/health``."""
    probe, port = container.get(f"{kind.lower()}Probe") or {}, _port(container, kind)
    if "httpGet" in probe:
        return f"{kind.lower()} probe GET :{port}{probe['httpGet'].get('path', '/')}"
    if "tcpSocket" in probe:
        return f"{kind.lower()} probe TCP :{port}"
    command = " ".join((probe.get("exec") or {}).get("command") or [])
    return f"{kind.lower()} probe {command[:80]}".rstrip()


def _port(container: Object, kind: str) -> str:
    """The number of the probe's port, which may be named."""
    probe = container.get(f"{kind.lower()}Probe") or {}
    wanted = (probe.get("httpGet") or probe.get("tcpSocket") or {}).get("port", "")
    named = {entry.get("name"): entry.get("containerPort") for entry in container.get("ports") or []}
    return str(named.get(wanted, wanted))


def _last_message(events: Iterable[Object], text: str, container: Object) -> str:
    """The newest message with this text about the container; empty where there is none."""
    own = f"{{{container['name']}}}"
    found = [
        event
        for event in events
        if text in str(event.get("message", ""))
        and own in (event.get("involvedObject") or {}).get("fieldPath", own)  # the kubelet names the container there
    ]
    newest = max(found, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""), default={})
    return str(newest.get("message", ""))


def _listening_ports(lines: Iterable[str]) -> list[str]:
    return [match[1] for line in lines for match in _LISTENING.finditer(line)]
