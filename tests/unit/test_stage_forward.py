"""Port-forwards: connections to a Ready pod, retries, and breaks on the way, distinct from the server's faults."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_vllm_stage.cluster import client, port_forward
from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageFailure
from pytest_vllm_stage.stage.facts import StageFacts, TargetFacts
from pytest_vllm_stage.stage.reach import forward, forwards
from pytest_vllm_stage.stage.reach.forward import ServiceForward
from tests.unit.made_api import ApiServer, served
from tests.unit.made_certificates import Authority
from tests.unit.made_objects import pod

Object = dict[str, Any]
DATA, ERROR = b"\x00", b"\x01"


class Kubelet:
    """Answers the port-forward of one pod: a websocket whose data channel echoes what it gets, in capitals.

    Attributes:
        end: What happens after the first message: ``""`` goes on, ``close`` ends regularly, ``reset`` loses the
            connection, ``error`` reports on the error channel.
        refuse: An HTTP status that is answered instead of the upgrade.
        tls: The pod's port speaks TLS with this context.
    """

    def __init__(self) -> None:
        self.end, self.refuse, self.opened = "", 0, 0
        self.tls: ssl.SSLContext | None = None
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve_until_reset, args=(connection,), daemon=True).start()

    def _serve_until_reset(self, connection: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            head = {}
            first = lines.readline().decode()
            while (line := lines.readline().strip()) and b":" in line:
                name, _, value = line.decode().partition(":")
                head[name.lower()] = value.strip()
            assert "/pods/a/portforward?ports=8080" in first
            if self.refuse:
                text = f"HTTP/1.1 {self.refuse} No\r\nContent-Length: 7\r\n\r\nbecause"
                connection.sendall(text.encode())
                return
            self.opened += 1
            guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            digest = hashlib.sha1(f"{head['sec-websocket-key']}{guid}".encode()).digest()  # noqa: S324 - RFC 6455
            accept, protocol = base64.b64encode(digest).decode(), head["sec-websocket-protocol"]
            connection.sendall(
                f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n".encode()
            )
            for channel in (DATA, ERROR):
                connection.sendall(_frame(channel + struct.pack("<H", 8080)))
            self._relay(connection, lines)

    def _relay(self, connection: socket.socket, lines: Any) -> None:
        if self.tls:
            self._relay_secure(self.tls, connection, lines)
            return
        while (message := _read_frame(lines)) is not None:
            connection.sendall(_frame(DATA + message[1:].upper()))
            if self.end == "error":
                connection.sendall(_frame(ERROR + b"lost connection to pod"))
            if self.end == "close":
                connection.sendall(b"\x88\x02\x03\xe8")
            if self.end == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if self.end:
                return

    @staticmethod
    def _relay_secure(tls: ssl.SSLContext, connection: socket.socket, lines: Any) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        secure, is_shaken = tls.wrap_bio(incoming, outgoing, server_side=True), False
        while (message := _read_frame(lines)) is not None:
            incoming.write(message[1:])
            with contextlib.suppress(ssl.SSLError):  # it needs more, or the client has refused the certificate
                if not is_shaken:
                    secure.do_handshake()
                is_shaken = True
                while piece := secure.read(65536):
                    secure.write(piece.upper())
            while outgoing.pending:
                connection.sendall(_frame(DATA + outgoing.read(60_000)))


def _frame(content: bytes) -> bytes:
    length = bytes([len(content)]) if len(content) < 126 else b"\x7e" + struct.pack(">H", len(content))
    return b"\x82" + length + content


def _read_frame(lines: Any) -> bytes | None:
    """The content of a client's frame; None at the end."""
    head = lines.read(2)
    if len(head) < 2 or head[0] & 0x0F == 8:
        return None
    length = head[1] & 0x7F
    if length == 126:
        (length,) = struct.unpack(">H", lines.read(2))
    elif length == 127:
        (length,) = struct.unpack(">Q", lines.read(8))
    mask, content = lines.read(4), lines.read(length)
    return bytes(byte ^ mask[i % 4] for i, byte in enumerate(content))


@pytest.fixture
def kubelet() -> Iterator[Kubelet]:
    made = Kubelet()
    yield made
    made.close()


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with served() as server:
        spec = {"selector": {"app": "m"}, "ports": [{"port": 80, "targetPort": "http"}], "clusterIP": "10.0.0.1"}
        server.add({"kind": "Service", "metadata": {"name": "m"}, "spec": spec})
        made = pod("a", labels={"app": "m"})
        made["spec"]["containers"][0]["ports"] = [{"name": "http", "containerPort": 8080}]
        server.add(made)
        yield server


@pytest.fixture
def forwarded(
    api: ApiServer, kubelet: Kubelet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServiceForward]:
    """A forward whose requests go to the API server, and whose websockets go to the kubelet."""
    with forwarding(api, kubelet, tmp_path, monkeypatch) as made:
        yield made


@contextlib.contextmanager
def forwarding(
    api: ApiServer, kubelet: Kubelet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, tls: bool = False
) -> Iterator[ServiceForward]:
    monkeypatch.setattr(forward, "_RETRY_S", 0.02)
    facts = api.facts(tmp_path)

    def open_at_kubelet(made: Any, *args: Any) -> Any:
        configuration = SimpleNamespace(host=f"http://127.0.0.1:{kubelet.port}", proxy=None, auth_settings=dict)
        at_kubelet: Any = SimpleNamespace(configuration=configuration, rest_client=made.rest_client)
        return port_forward.open_tunnel(at_kubelet, *args)

    monkeypatch.setattr(forward, "open_tunnel", open_at_kubelet)
    with client.connection(facts.kubeconfig, facts.context) as kube:
        made = ServiceForward(kube, "ns", "m", "80", tls=tls)
        yield made
        made.close()


def exchange(forwarded: ServiceForward, *messages: bytes) -> bytes:
    """Send each message over one connection and await its answer; return the answers, as far as they come."""
    host, _, port = forwarded.address.partition(":")
    received = b""
    with contextlib.suppress(ConnectionError), socket.create_connection((host, int(port)), 60) as connection:
        for message in messages:
            connection.sendall(message)
            expected = len(received) + len(message)
            while len(received) < expected and (piece := connection.recv(4096)):
                received += piece
    return received


def wait_for(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, "the condition was not reached"
        time.sleep(0.01)


def test_each_connection_goes_to_the_pod_and_back(forwarded: ServiceForward, kubelet: Kubelet) -> None:
    assert exchange(forwarded, b"hello ", b"x" * 300) == b"HELLO " + b"X" * 300


def test_a_pod_that_becomes_ready_in_time_costs_time_and_no_request(forwarded: ServiceForward, api: ApiServer) -> None:
    (key,) = [key for key in api.objects if key.endswith("/pods/a")]
    ready = api.objects.pop(key)
    threading.Timer(0.3, lambda: api.objects.__setitem__(key, ready)).start()
    assert exchange(forwarded, b"a") == b"A"
    assert forwarded.find_break(0.0) == ""


def test_without_a_ready_pod_the_connection_is_closed_and_the_reason_is_kept(
    forwarded: ServiceForward, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "PATIENCE_S", 0.1)
    api.objects = {key: item for key, item in api.objects.items() if item["kind"] != "Pod"}
    before_s = time.time()
    assert exchange(forwarded, b"a") == b""
    assert forwarded.find_break(before_s) == "the port-forward to service/m broke: service/m has no Ready pod among 0"
    assert forwarded.find_break(time.time() + 1) == ""
    with pytest.raises(StageFailure, match="service/m has no Ready pod among 0"):
        forwarded.check()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "authority").mkdir()
    return Authority(tmp_path / "authority")


@pytest.fixture
def secured(
    api: ApiServer, kubelet: Kubelet, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServiceForward]:
    """A forward to a port that speaks TLS with a certificate for the Service."""
    with forwarding(api, kubelet, tmp_path, monkeypatch, tls=True) as made:
        present(kubelet, authority.issue("m.ns.svc", "m.ns.svc.cluster.local"))
        yield made


def present(kubelet: Kubelet, pem: Path) -> None:
    kubelet.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    kubelet.tls.load_cert_chain(pem)


def test_a_port_with_tls_is_verified_for_the_services_name(secured: ServiceForward, authority: Authority) -> None:
    secured.trust(str(authority.certificate))
    assert exchange(secured, b"hello ", b"x" * 500_000) == b"HELLO " + b"X" * 500_000
    assert secured.find_break(0.0) == ""


def test_a_certificate_of_an_unknown_authority_is_refused_and_named(
    secured: ServiceForward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "PATIENCE_S", 0.1)
    assert exchange(secured, b"hello") == b""
    wait_for(lambda: secured.find_break(0.0))
    assert "is signed by 'private-ca', an authority that is not trusted" in secured.find_break(0.0)


def test_a_certificate_for_another_service_is_refused_and_named(
    secured: ServiceForward, authority: Authority, kubelet: Kubelet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "PATIENCE_S", 0.1)
    secured.trust(str(authority.certificate))
    present(kubelet, authority.issue("other.ns.svc", name="other"))
    assert exchange(secured, b"hello") == b""
    wait_for(lambda: secured.find_break(0.0))
    assert "is for another host: expected m.ns.svc, got other.ns.svc" in secured.find_break(0.0)


@pytest.mark.parametrize("end", ["close", "error"])
def test_an_end_by_the_pod_is_not_a_break(forwarded: ServiceForward, kubelet: Kubelet, end: str) -> None:
    kubelet.end = end
    assert exchange(forwarded, b"a") in (b"A", b"")  # what is pending is lost with an error
    assert forwarded.find_break(0.0) == ""


def test_a_lost_connection_to_the_api_server_is_a_break_and_the_next_request_works(
    forwarded: ServiceForward, kubelet: Kubelet
) -> None:
    kubelet.end = "reset"
    exchange(forwarded, b"a", b"b")  # the client awaits a second answer, and does not leave first
    wait_for(lambda: forwarded.find_break(0.0))
    assert forwarded.find_break(0.0).startswith(
        "the port-forward to service/m broke: the connection to the API server was lost ("
    )
    kubelet.end = ""
    assert exchange(forwarded, b"b") == b"B"


@pytest.mark.parametrize("deleted", [True, False])
def test_a_deleted_pod_is_a_break_although_its_connection_ended_regularly(
    forwarded: ServiceForward, api: ApiServer, kubelet: Kubelet, deleted: bool
) -> None:
    kubelet.end = "close"
    before_s = time.time()
    exchange(forwarded, b"a")
    (key,) = [key for key in api.objects if key.endswith("/pods/a")]
    if deleted:
        del api.objects[key]
    else:
        api.objects[key]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    said = "pod/a was deleted" if deleted else "pod/a is being deleted"
    assert forwarded.find_break(before_s) == f"the port-forward to service/m broke: {said}"


def test_a_refused_port_forward_names_the_missing_rights(forwarded: ServiceForward, kubelet: Kubelet) -> None:
    kubelet.refuse = 403
    with pytest.raises(
        EnvironmentUnusable,
        match=r"HTTP 403: the rights to get and create pods/portforward in namespace ns are needed: because",
    ):
        forwarded.check()


def test_a_client_that_leaves_is_not_a_break(forwarded: ServiceForward, kubelet: Kubelet) -> None:
    host, _, port = forwarded.address.partition(":")
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(b"a")
        assert connection.recv(10) == b"A"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    forwarded.check()
    assert kubelet.opened == 2
    assert forwarded.find_break(0.0) == ""


def test_facts_name_a_service_and_a_process_uses_an_address_of_its_own(
    forwarded: ServiceForward, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = forwards.forward_url("ns", "m", "80")
    monkeypatch.setattr(forwards, "_OPEN", {url: forwarded})
    targets = (TargetFacts("full", "m", url), TargetFacts("other", "o", "https://o.test"))
    cluster: Any = None
    found = forwards.localise(cluster, StageFacts("ns", "", False, targets, minio_url=url), lambda: None)
    assert [target.base_url for target in found.targets] == [f"http://{forwarded.address}", "https://o.test"]
    assert found.minio_url == f"http://{forwarded.address}"
    assert forwards.find_local(found.minio_url) is forwarded
    assert forwards.find_local("https://o.test") is None
    forwards.close_all()
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the system has it
        socket.create_connection(("127.0.0.1", int(found.minio_url.rpartition(":")[2])), 1)


def test_the_websocket_is_sent_as_the_clients_other_requests() -> None:
    token = {"in": "header", "key": "authorization", "value": "Bearer t"}
    configuration = SimpleNamespace(
        auth_settings=lambda: {"BearerToken": token},
        proxy=None,
        proxy_headers=None,
        no_proxy="near.test,10.0.0.1",
        tls_server_name="api.test",
        host="https://10.0.0.2",
    )
    pool = SimpleNamespace(connection_pool_kw={"ssl_context": "the context"})
    made: Any = SimpleNamespace(configuration=configuration, rest_client=SimpleNamespace(pool_manager=pool))
    assert port_forward._tls(made) == {"context": "the context", "server_hostname": "api.test"}
    direct = port_forward._options(made)
    assert (direct["header"], direct["http_no_proxy"]) == (["authorization: Bearer t"], ["*"])
    configuration.proxy = "http://proxy.test:3128"
    proxied = port_forward._options(made)
    assert (proxied["http_proxy_host"], proxied["http_proxy_port"]) == ("proxy.test", 3128)
    assert proxied["http_no_proxy"] == ["near.test", "10.0.0.1"]
