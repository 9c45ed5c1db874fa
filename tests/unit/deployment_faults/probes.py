# ruff: noqa: E501 the texts of other programs stay whole
"""Pods that run and never become Ready."""

from __future__ import annotations

from typing import Any

from tests.unit.deployment_faults.fault import READY, RUNNING, Fault, Object, model
from tests.unit.made_objects import IMAGE, container_status, event, pod


def unready(**probe: Any) -> Object:
    container = {"name": "kserve-container", "image": IMAGE, "ports": [{"containerPort": 8080}], **probe}
    return pod(ready=False, statuses=[RUNNING], spec={"containers": [container]})


UNREADY_PATH = unready(readinessProbe={"httpGet": {"path": "/ready", "port": 8080}})
UNREADY_PORT = unready(readinessProbe={"httpGet": {"path": "/health", "port": 8000}})
UNREADY_EXEC = unready(readinessProbe={"exec": {"command": ["curl", "-f", "localhost:8080/health"]}})
KILLED = pod(
    ready=False,
    statuses=[container_status(ready=False, restartCount=1)],
    spec={
        "containers": [
            {"name": "kserve-container", "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}}},
        ]
    },
)
READINESS_GATE = pod(statuses=[container_status()], ready=False)
READINESS_GATE["status"]["conditions"][0] |= {
    "reason": "ReadinessGatesNotReady",
    "message": 'corresponding condition of pod readiness gate "target-health.example.com/x" does not exist.',
}
NAMED_PORT = unready(readinessProbe={"httpGet": {"path": "/health", "port": "http"}})


def failing(planted: str, cause: str, message: str, *log: str, **fields: str) -> Fault:
    made = unready(readinessProbe={"httpGet": {"path": "/health", "port": 8080, **fields}})
    shown = event(made, "Unhealthy", f"Readiness probe failed: {message}")
    return Fault(planted, f"{READY}: {cause}", model(made), log, (shown,))


FAULTS: tuple[Fault, ...] = (
    Fault(
        "readiness probe on a path that does not exist",
        f"{READY}: readiness probe GET :8080/ready answers 404; the log says it listens on :8080",
        model(UNREADY_PATH),
        ("INFO: Uvicorn running on http://0.0.0.0:8080 (Press CTRL+C to quit)",),
        (event(UNREADY_PATH, "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404"),),
    ),
    Fault(
        "readiness probe on another port than the server's",
        f"{READY}: readiness probe GET :8000/health is refused; the log says it listens on :8080",
        model(UNREADY_PORT),
        ("INFO: Uvicorn running on http://0.0.0.0:8080 (Press CTRL+C to quit)",),
        (
            event(
                UNREADY_PORT, "Unhealthy", "Readiness probe failed: dial tcp 10.1.2.3:8000: connect: connection refused"
            ),
        ),
    ),
    Fault(
        "probe by the name of a port that the container does not declare",
        f"{READY}: readiness probe GET :http/health names port http, which container kserve-container does not declare "
        "(declared: 8080)",
        model(NAMED_PORT),
        (),
        (
            event(
                NAMED_PORT,
                "Unhealthy",
                'Readiness probe errored and resulted in unknown state: strconv.Atoi: parsing "http": invalid syntax',
            ),
        ),
    ),
    Fault(
        "probe command that the image does not have",
        f'{READY}: readiness probe curl -f localhost:8080/health cannot run: exec: "curl": executable file not found in '
        "$PATH",
        model(UNREADY_EXEC),
        (),
        (
            event(
                UNREADY_EXEC,
                "Unhealthy",
                "Readiness probe errored and resulted in unknown state: rpc error: code = Unknown desc = failed to exec in "
                'container: failed to start exec "0a": OCI runtime exec failed: exec failed: unable to start container '
                'process: exec: "curl": executable file not found in $PATH: unknown',
            ),
        ),
    ),
    Fault(
        "liveness probe that kills the engine while it loads",
        f"{READY}: liveness probe GET :8080/health restarts container kserve-container: dial tcp 10.1.2.3:8080: connect: "
        "connection refused",
        model(KILLED),
        (),
        (
            event(KILLED, "Unhealthy", "Liveness probe failed: dial tcp 10.1.2.3:8080: connect: connection refused"),
            event(
                KILLED, "Killing", "Container kserve-container failed liveness probe, will be restarted", kind="Normal"
            ),
        ),
    ),
    Fault(
        "readiness gate that no controller fulfils",
        f'{READY}: pod p is not Ready: corresponding condition of pod readiness gate "target-health.example.com/x" does '
        "not exist.",
        model(READINESS_GATE),
    ),
    failing(
        "engine that listens on the loopback address only",
        "readiness probe GET :8080/health is refused; the log says it listens on 127.0.0.1:8080, which only its own pod "
        "reaches (--host 0.0.0.0)",
        'Get "http://10.1.2.3:8080/health": dial tcp 10.1.2.3:8080: connect: connection refused',
        "INFO 07-30 15:32:48 [api_server.py:1] Starting vLLM API server 0 on http://127.0.0.1:8080",
    ),
    failing(
        "probe by HTTPS of a server without TLS",
        "readiness probe GET :8080/health asks by HTTPS (scheme), and the server speaks HTTP",
        'Get "https://10.1.2.3:8080/health": http: server gave HTTP response to HTTPS client',
        scheme="HTTPS",
    ),
    failing(
        "probe by HTTP of a server with TLS",
        "readiness probe GET :8080/health asks by HTTP, and the log says that the server speaks HTTPS on :8080 (scheme: "
        "HTTPS)",
        'Get "http://10.1.2.3:8080/health": EOF',
        "INFO 07-30 15:32:48 [api_server.py:1] Starting vLLM API server 0 on https://0.0.0.0:8080",
    ),
)
