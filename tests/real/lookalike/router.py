"""The distribution's HAProxy as OpenShift's router: TLS at the edge, its time limits, and its page for no upstream.

It runs on this machine next to the cluster, since no image of it can be pulled here, and reaches the Services by their
cluster IPs. `Router` has the settings of a healthy one; a fault is a change of them.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until
from tests.real.servers import run_process

PORT = 443
#: As OpenShift's router has it, for Routes without the annotation haproxy.router.openshift.io/timeout.
DEFAULT_TIMEOUT = "30s"
TIMEOUT_ANNOTATION = "haproxy.router.openshift.io/timeout"
START_S = 30
_REVIEW = Path(__file__).with_name("review.lua")
_PAGE = """HTTP/1.0 503 Service Unavailable\r
Pragma: no-cache\r
Cache-Control: private, max-age=0, no-cache, no-store\r
Connection: close\r
Content-Type: text/html\r
\r
<html><head><title>Application not available</title></head><body><h1>Application is not available</h1>
<p>The application is currently not serving requests at this endpoint.</p></body></html>
"""
_CONFIGURATION = """
global
    maxconn 400
    tune.bufsize 32768
    tune.maxrewrite 8192
    lua-load {review}
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server {default}
    timeout http-request 10s
    timeout http-keep-alive 300s
    timeout tunnel 1h
    errorfile 503 {page}
frontend edge
    bind {address}:{port} ssl crt {certificate}
    option forwardfor
{rules}
{backends}
"""


@dataclass(frozen=True)
class Upstream:
    """A Route and what is behind it.

    Attributes:
        host: The Route's host.
        address: Address and port of its Service.
        timeout: The value of the Route's annotation; empty where it has none.
        review: URL that reviews the tokens of requests; empty for a model without protection.
    """

    host: str
    address: str
    timeout: str = ""
    review: str = ""


@dataclass(frozen=True)
class Router:
    """A router's settings.

    Attributes:
        name: Names its files.
        address: The loopback address that it listens on.
        certificate: PEM file with the certificate of every Route, and its key.
        upstreams: The Routes.
        rules: Further lines for its frontend.
    """

    name: str
    address: str
    certificate: Path
    upstreams: Sequence[Upstream]
    rules: Sequence[str] = field(default=())

    def configuration(self, page: Path) -> str:
        """HAProxy's configuration file."""
        rules = list(self.rules)
        backends = []
        for index, upstream in enumerate(self.upstreams):
            rules.append(f"use_backend route-{index} if {{ req.hdr(host),field(1,:),lower -m str {upstream.host} }}")
            lines = [f"backend route-{index}"]
            if upstream.timeout:
                lines.append(f"timeout server {upstream.timeout}")
            if upstream.review:
                lines.append(f"http-request lua.review {upstream.review}")
                for status, text in ((401, "Unauthorized"), (403, "Forbidden")):
                    refused = f'content-type text/plain string "{text}" if {{ var(txn.review) -m int {status} }}'
                    lines.append(f"http-request return status {status} {refused}")
                lines.append("http-request deny deny_status 500 unless { var(txn.review) -m int 200 }")
            backends.append("\n    ".join([*lines, f"server service {upstream.address}"]))
        return _CONFIGURATION.format(
            review=_REVIEW,
            default=DEFAULT_TIMEOUT,
            page=page,
            address=self.address,
            port=PORT,
            certificate=self.certificate,
            rules="\n".join(f"    {rule}" for rule in rules),
            backends="\n".join(backends),
        )


def find_haproxy() -> str | None:
    """Path of HAProxy's program, which is not on every user's PATH; None where it is not installed."""
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def run_router(router: Router, haproxy: str, folder: Path) -> Iterator[None]:
    """Run a router until the end of the block."""
    page, configuration, log = (folder / f"{router.name}.{kind}" for kind in ("http", "cfg", "log"))
    page.write_text(_PAGE, newline="")
    configuration.write_text(router.configuration(page))
    with run_process([haproxy, "-db", "-f", str(configuration)], None, log) as process:
        wait_until(
            f"router {router.name} listens",
            lambda: _observe(process, router.address, log),
            timeout_s=START_S,
            journal=Journal(),
            error=EnvironmentUnusable,
        )
        yield


def _observe(process: subprocess.Popen[bytes], address: str, log: Path) -> Observation:
    if process.poll() is not None:
        raise EnvironmentUnusable(f"haproxy ended with {process.returncode}: {log.read_text()[-1000:]}")
    try:
        socket.create_connection((address, PORT), 1).close()
    except OSError as error:
        return Observation(False, str(error))
    return Observation(True, "listening")
