"""The distribution's HAProxy as OpenShift's router: TLS at the edge, its time limits, and its page for no upstream.

It runs on this machine next to the cluster, since no image of it can be pulled here, and reaches the Services by their
cluster IPs. `Router` has the settings of a healthy one; a fault is a change of them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.real.lookalike.listener import await_listener
from tests.real.servers import run_process

PORT = 443
#: A loopback address of this process for each number: HAProxy would share one with the router of another process.
ADDRESS = f"127.{64 + os.getpid() % 64}.{1 + os.getpid() // 64 % 250}.{{}}"
#: As OpenShift's router has it, for Routes without the annotation haproxy.router.openshift.io/timeout.
DEFAULT_TIMEOUT = "30s"
TIMEOUT_ANNOTATION = "haproxy.router.openshift.io/timeout"
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
    tune.bufsize {buffer}
    tune.maxrewrite 8192
defaults
    mode http
{options}
    timeout connect 5s
    timeout client 30s
    timeout client-fin 1s
    timeout server {default}
    timeout server-fin 1s
    timeout http-request 10s
    timeout http-keep-alive 300s
    timeout tunnel 1h
    errorfile 503 {page}
frontend edge
    bind {address}:{port} ssl crt {certificate}
    option forwardfor
    # HAProxy 2.6.12 loses a streamed body when the interim answer and the head of the final one come in one piece. So
    # it answers by itself here, and the server is not asked for an interim answer.
    http-request wait-for-body time 10s if {{ req.hdr(expect) -m found }}
    http-request del-header expect
{rules}
{backends}
"""


@dataclass(frozen=True)
class Guard:
    """A proxy that reviews the token of each request; the router encrypts again for it, and verifies its certificate.

    Attributes:
        address: Its address and port.
        host: The name that its certificate is for.
        authority: PEM file of the authority of its certificate.
    """

    address: str
    host: str
    authority: Path


@dataclass(frozen=True)
class Upstream:
    """A Route and what is behind it.

    Attributes:
        host: The Route's host.
        address: Address and port of its Service.
        timeout: The value of the Route's annotation; empty where it has none.
        guard: The proxy in front of the Service, to which the router goes instead; None for one without protection.
    """

    host: str
    address: str
    timeout: str = ""
    guard: Guard | None = None


@dataclass(frozen=True)
class Router:
    """A router's settings.

    Attributes:
        name: Names its files.
        address: The loopback address that it listens on.
        certificate: PEM file with the certificate of every Route, and its key.
        upstreams: The Routes.
        rules: Further lines for its frontend.
        options: Lines for its defaults. Without this one it lets a request run on whose client has left.
        buffer_bytes: Its buffer, of which a request's headers may fill all but 8 KiB.
    """

    name: str
    address: str
    certificate: Path
    upstreams: Sequence[Upstream]
    rules: Sequence[str] = field(default=())
    options: Sequence[str] = ("option abortonclose",)
    buffer_bytes: int = 32768

    def configuration(self, page: Path) -> str:
        """HAProxy's configuration file."""
        rules = list(self.rules)
        backends = []
        for index, upstream in enumerate(self.upstreams):
            rules.append(f"use_backend route-{index} if {{ req.hdr(host),field(1,:),lower -m str {upstream.host} }}")
            lines = [f"backend route-{index}"]
            if upstream.timeout:
                lines.append(f"timeout server {upstream.timeout}")
            backends.append("\n    ".join([*lines, f"server service {_describe_server(upstream)}"]))
        return _CONFIGURATION.format(
            buffer=self.buffer_bytes,
            options="\n".join(f"    {option}" for option in self.options),
            default=DEFAULT_TIMEOUT,
            page=page,
            address=self.address,
            port=PORT,
            certificate=self.certificate,
            rules="\n".join(f"    {rule}" for rule in rules),
            backends="\n".join(backends),
        )


def _describe_server(upstream: Upstream) -> str:
    """HAProxy's words for the server of a Route, which is the proxy in front of it where there is one."""
    guard = upstream.guard
    if guard is None:
        return upstream.address
    # HTTP/2, as OpenShift's router speaks to such servers. With HTTP/1.1, Go's proxy can lose an answer that comes
    # before it has noticed the end of the request's body.
    return f"{guard.address} ssl alpn h2,http/1.1 verify required ca-file {guard.authority} verifyhost {guard.host}"


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
        await_listener(f"router {router.name}", process, (router.address, PORT), log)
        yield
