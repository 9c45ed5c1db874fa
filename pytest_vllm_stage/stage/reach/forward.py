"""A port-forward to a Service: a listening socket of this process, whose connections end at a Ready pod."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllm_stage.cluster.api_errors import RequestRejected
from pytest_vllm_stage.cluster.port_forward import open_tunnel
from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageError, StageFailure
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.reach.tls_relay import connect_secure, relay

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

#: How long a new connection waits for a Ready pod and for the API server, before it is closed.
PATIENCE_S = 20.0
_RETRY_S = 0.5
#: How long a first connection is observed: the kubelet reports at once that it cannot forward.
_CHECK_S = 0.5


@dataclass(frozen=True)
class _Use:
    """A pod that a connection went to.

    Attributes:
        pod: Its name.
        uid: Its identity.
        at_s: Seconds since the epoch when a connection to it was opened or ended last.
    """

    pod: str
    uid: str
    at_s: float


class ServiceForward:
    """Forwards connections of this machine to a Service's pods, each through a websocket of its own.

    A connection that cannot be opened is retried: a pod that is replaced, or an API server that restarts, costs time
    and no request. One that breaks while it is used is closed, and `find_break` distinguishes it from a fault of the
    server. Its threads end with the process.

    Args:
        kube: The cluster.
        namespace: The Service's namespace.
        service: Its name.
        port: One of its ports.
        tls: The port speaks TLS. Its certificate is verified for the Service's name; connections on this machine are
            plain ones.
    """

    def __init__(self, kube: DynamicClient, namespace: str, service: str, port: str, *, tls: bool = False) -> None:
        self._kube, self._tls = kube, tls
        self._ca_file: str | None = None
        self.namespace, self.service, self.port = namespace, service, port
        self._lock = threading.Lock()
        self._breaks: list[tuple[float, str]] = []
        self._uses: dict[str, _Use] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        threading.Thread(target=self._accept, name=f"port-forward {self.name}", daemon=True).start()

    @property
    def name(self) -> str:
        """For a reader."""
        return f"service/{self.service}"

    @property
    def address(self) -> str:
        """Host and port of this machine that lead to the Service."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def trust(self, ca_file: str | None) -> None:
        """Verify certificates by the authorities of a PEM file; None, as before the first call, for the system's."""
        self._ca_file = ca_file

    def close(self) -> None:
        """Accept no more connections; those that are open end with their clients."""
        # A thread that waits in accept() is not woken by close() alone.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def check(self) -> None:
        """Open one connection to a pod and close it.

        Raises:
            StageError: there is no Ready pod, or the cluster does not forward to it.
        """
        ended = threading.Event()
        reports: list[str] = []

        def note(broken: str, report: str) -> None:
            reports.append(broken or report)
            ended.set()

        ours, theirs = socket.socketpair()
        with ours:
            try:
                pod, port = self._find_pod()
                open_tunnel(self._kube.client, self.namespace, objects.name_of(pod), port, theirs, note)
            except BaseException:
                theirs.close()
                raise
            if ended.wait(_CHECK_S) and reports[0]:
                raise EnvironmentUnusable(f"port-forward to port {port} of {objects.reference(pod)}: {reports[0]}")

    def find_break(self, since_s: float) -> str:
        """Why connections broke through no fault of the server; empty where none did.

        Args:
            since_s: Seconds since the epoch; earlier breaks do not count.
        """
        with self._lock:
            breaks = [text for at_s, text in self._breaks if at_s >= since_s]
            uses = [use for use in self._uses.values() if use.at_s >= since_s]
        breaks = breaks or [text for use in uses if (text := self._describe_loss(use))]
        more = f" (and {len(breaks) - 1} more)" if len(breaks) > 1 else ""
        return f"the port-forward to {self.name} broke: {breaks[0]}{more}" if breaks else ""

    def _describe_loss(self, use: _Use) -> str:
        try:
            found = objects.get(self._kube, "Pod", use.pod, self.namespace)
        except (EnvironmentUnusable, RequestRejected) as error:
            return error.message
        if found is None or found["metadata"].get("uid") != use.uid:
            return f"pod/{use.pod} was deleted"
        return f"pod/{use.pod} is being deleted" if found["metadata"].get("deletionTimestamp") else ""

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._forward, args=(connection,), daemon=True).start()

    def _forward(self, connection: socket.socket) -> None:
        """Join a connection to a pod; where that is not possible in time, close it and note why."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._open(connection)
                return
            except StageError as error:
                reason = error.message
            except OSError as error:
                reason = f"the connection was closed in the TLS handshake ({type(error).__name__}: {error})"
            except Exception as error:  # in a thread: any other one would end it unseen, and the client would hang
                reason, deadline_s = f"{type(error).__name__}: {error}", 0.0
            if time.monotonic() >= deadline_s:
                break
            time.sleep(_RETRY_S)
        self._note_break(reason)
        connection.close()

    def _open(self, connection: socket.socket) -> None:
        pod, port = self._find_pod()
        name, uid = objects.name_of(pod), str(pod["metadata"].get("uid"))

        def ended(broken: str, report: str) -> None:
            del report  # the kubelet's: the server closed or refused the connection, or its pod is gone
            self._note_use(name, uid)
            if broken:
                self._note_break(f"the connection to the API server was lost ({broken})")

        def join(end: socket.socket) -> None:
            open_tunnel(self._kube.client, self.namespace, name, port, end, ended)

        self._note_use(name, uid)
        if not self._tls:
            join(connection)
            return
        server_name = f"{self.service}.{self.namespace}.svc"
        show = (
            f"kubectl -n {self.namespace} port-forward {self.name} {self.port} & "
            f"openssl s_client -connect localhost:{self.port} -servername {server_name}"
        )
        relay(connection, connect_secure(join, server_name, self._ca_file, show))

    def _note_use(self, pod: str, uid: str) -> None:
        with self._lock:
            self._uses[uid] = _Use(pod, uid, time.time())

    def _note_break(self, text: str) -> None:
        with self._lock:
            self._breaks.append((time.time(), text))

    def _find_pod(self) -> tuple[Object, int]:
        """A Ready pod of the Service, and the number of its port."""
        service = objects.get(self._kube, "Service", self.service, self.namespace)
        selector = (service or {}).get("spec", {}).get("selector")
        if service is None or not selector:
            raise StageFailure(f"{self.name} does not exist in namespace {self.namespace}, or selects no pods")
        pods = objects.listed(self._kube, "Pod", self.namespace, selector)
        ready = [pod for pod in pods if objects.is_true(pod, "Ready") and not pod["metadata"].get("deletionTimestamp")]
        if not ready:
            raise StageFailure(f"{self.name} has no Ready pod among {len(pods)}")
        chosen = find_port(service, self.port)
        port = find_pod_port(ready[0], chosen.get("targetPort") or chosen["port"])
        if not str(port).isdigit():
            raise StageFailure(f"{objects.reference(ready[0])} declares no port {port}")
        return ready[0], int(port)


def find_port(service: Object, port: str) -> Object:
    """The Service's entry of a port; its first one where it does not have that port."""
    ports: dict[str, Object] = {str(entry["port"]): entry for entry in service["spec"].get("ports") or []}
    return ports.get(port) or next(iter(ports.values()), {"port": int(port)})


def find_pod_port(pod: Object, target: int | str) -> int | str:
    """The number of a port that a Service may name; the name itself where no container declares it."""
    declared = [port for container in pod["spec"]["containers"] for port in container.get("ports") or []]
    return next((port["containerPort"] for port in declared if port.get("name") == target), target)
