"""What a pod's probes say: pure functions over a container's specification, its events and its log."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import messages, runbook

#: How HTTP servers announce their address (uvicorn, vLLM); engines log the ports of their own processes too.
_LISTENING = re.compile(r"(?:running|server|[Ll]istening)\b.*\bon (https?)://(\[[^\]]*\]|[^\s:/]+):(\d{2,5})\b")
_LOOPBACK = re.compile(r"127\.\d+\.\d+\.\d+|localhost|\[::1\]")
_STATUS = re.compile(r"statuscode: (\d{3})")
#: What a server that expects TLS does with a probe without it.
_ENDED_BY_TLS = re.compile(r"\bEOF$|connection reset by peer|malformed HTTP response")


class Listener(NamedTuple):
    """An address that a server announces in its log."""

    scheme: str
    host: str
    port: str


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
        cause = _explain_failure(message, container, kind, log)
        if cause:
            return f"{describe_probe(container, kind)} {cause}"
    return None


def _explain_failure(message: str, container: Object, kind: str, log: Callable[[], list[str]]) -> str | None:
    """What a probe's failure says that does not change by waiting, as the rest of a sentence about the probe."""
    status = _STATUS.search(message)
    if status and status[1].startswith("4"):
        announced = _listeners(log())
        return f"answers {status[1]}" + (f"; the log says it listens on :{announced[-1].port}" if announced else "")
    if "server gave HTTP response to HTTPS client" in message:
        return "asks by HTTPS (scheme), and the server speaks HTTP"
    refused, port = "connection refused" in message, _port(container, kind)
    if not port or not (refused or _ENDED_BY_TLS.search(message)):
        return None
    announced = _listeners(log())
    here = [one for one in announced if one.port == port]
    if refused and announced and not here:
        return f"is refused; the log says it listens on :{announced[-1].port}"
    if refused and here and all(_LOOPBACK.fullmatch(one.host) for one in here):
        where = f"{here[-1].host}:{port}"
        return f"is refused; the log says it listens on {where}, which only its own pod reaches (--host 0.0.0.0)"
    if not refused and here and here[-1].scheme == "https" and _scheme(container, kind) == "HTTP":
        return f"asks by HTTP, and the log says that the server speaks HTTPS on :{port} (scheme: HTTPS)"
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


def _scheme(container: Object, kind: str) -> str:
    """HTTP or HTTPS; empty for a probe of another kind."""
    asked = (container.get(f"{kind.lower()}Probe") or {}).get("httpGet")
    return str(asked.get("scheme") or "HTTP") if asked else ""


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


def _listeners(lines: Iterable[str]) -> list[Listener]:
    return [Listener(*match.groups()) for line in lines for match in _LISTENING.finditer(line)]
