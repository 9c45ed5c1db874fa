"""One connection to a port of a pod, through the API server, by the official client's port-forward."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kubernetes.stream.ws_client import PortForward, get_websocket_url, websocket_proxycare
from websocket import ABNF, WebSocket, WebSocketBadStatusException, WebSocketException

from pytest_vllm_stage.cluster.api_errors import ApiServerUnreachable, RequestRejected
from pytest_vllm_stage.core.errors import EnvironmentUnusable

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

#: The kubelet's protocol: a data channel and an error channel per port.
_PROTOCOL = "v4.channel.k8s.io"
_CONNECT_TIMEOUT_S = 15.0
#: Called when a connection has ended: why it broke on the way, and what the kubelet reported; each may be empty.
Ended = Callable[[str, str], None]


class _Socket(WebSocket):
    """Remembers how the API server's end of the connection ended."""

    lost = ""
    _was_closed = False

    def recv_data_frame(self, control_frame: bool = False) -> tuple[int, Any]:
        try:
            opcode, frame = super().recv_data_frame(control_frame)
        except (WebSocketException, OSError) as error:
            if not self._was_closed:
                self.lost = f"{type(error).__name__}: {error}"
            raise
        if opcode == ABNF.OPCODE_CLOSE:
            self._was_closed, self.connected = True, False
        return opcode, frame


class Tunnel(PortForward):
    """A local connection whose other end is a port of a pod; it runs in a thread until either side closes.

    The base class pairs a websocket with a socket of its own, and its thread ends with a traceback, and leaves that
    socket open, where the connection to the API server is reset:
    https://github.com/kubernetes-client/python/blob/v36.0.0/kubernetes/base/stream/ws_client.py
    """

    def __init__(self, websocket: _Socket, port: int, connection: socket.socket, ended: Ended) -> None:
        self._connection = connection
        self._ended = ended
        super().__init__(websocket, [port])  # type: ignore[no-untyped-call]

    def _proxy(self) -> None:
        (port,) = self.local_ports.values()
        for unused in (port.python, port.socket):
            unused.close()
        port.python = self._connection
        broken = ""
        try:
            super()._proxy()  # type: ignore[no-untyped-call]
        except Exception as error:
            broken = "" if self._is_alive() else f"{type(error).__name__}: {error}"
        finally:
            self._connection.close()
            with contextlib.suppress(WebSocketException, OSError):
                self.websocket.shutdown()
            self._ended(self.websocket.lost or broken, str(port.error or "").strip())

    def _is_alive(self) -> bool:
        """The API server's connection can still be written to: it was the local one that failed."""
        try:
            self.websocket.ping()
        except (WebSocketException, OSError):
            return False
        return True


def open_tunnel(api: ApiClient, namespace: str, pod: str, port: int, connection: socket.socket, ended: Ended) -> Tunnel:
    """Join a local connection to a port of a pod; the tunnel closes it.

    Raises:
        ApiServerUnreachable: the API server does not answer.
        EnvironmentUnusable: this user may not do this.
        RequestRejected: the pod does not exist, or the kubelet refuses.
    """
    if str(api.configuration.proxy or "").startswith("socks"):
        raise EnvironmentUnusable(f"no port-forward through a SOCKS proxy (proxy-url of the kubeconfig) to pod/{pod}")
    path = f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}/portforward"
    what = f"port-forward to port {port} of pod/{pod}"
    websocket = _Socket(sslopt=_tls(api))
    try:
        url = get_websocket_url(f"{api.configuration.host}{path}", [("ports", str(port))])
        websocket.connect(url, **_options(api))  # type: ignore[no-untyped-call]
        if websocket.getstatus() != HTTPStatus.SWITCHING_PROTOCOLS:
            raise ApiServerUnreachable(f"{what}: HTTP {websocket.getstatus()} from another server than the API server")
        websocket.settimeout(None)
    except WebSocketBadStatusException as error:
        raise _refusal(what, namespace, error) from None
    except (WebSocketException, OSError) as error:
        raise ApiServerUnreachable(f"{what}: the cluster does not answer ({type(error).__name__}: {error})") from None
    return Tunnel(websocket, port, connection, ended)


def _tls(api: ApiClient) -> dict[str, Any]:
    """TLS as the client's other requests have it, whose certificate files are gone."""
    options = {"context": api.rest_client.pool_manager.connection_pool_kw.get("ssl_context")}
    name = getattr(api.configuration, "tls_server_name", None)
    return {**options, "server_hostname": name} if name else options


def _options(api: ApiClient) -> dict[str, Any]:
    """Credentials and proxy as the client sends its other requests."""
    configuration = api.configuration
    headers = {auth["key"]: auth["value"] for auth in configuration.auth_settings().values() if auth["in"] == "header"}
    identity = getattr(api, "identity", None)
    sent = [*headers.items(), *(identity.impersonation if identity else ())]
    options: dict[str, Any] = {
        "header": [f"{name}: {value}" for name, value in sent],
        "subprotocols": [_PROTOCOL],
        "suppress_origin": True,
        "redirect_limit": 0,
        "timeout": _CONNECT_TIMEOUT_S,
        # The environment's proxy applies where the configuration has one, and nowhere else.
        "http_no_proxy": ["*"],
    }
    if configuration.proxy:
        del options["http_no_proxy"]
        websocket_proxycare(options, configuration, configuration.host, headers)
    return options


def _refusal(what: str, namespace: str, error: WebSocketBadStatusException) -> Exception:
    body = error.resp_body.decode("utf-8", "replace") if isinstance(error.resp_body, bytes) else ""
    text = " ".join(body.split())[:300] or "no reason given"
    if error.status_code in (401, 403):
        return EnvironmentUnusable(
            f"{what}: HTTP {error.status_code}: the rights to get and create pods/portforward in namespace "
            f"{namespace} are needed: {text}",
            hint=f"kubectl auth can-i create pods/portforward -n {namespace}",
        )
    if error.status_code >= 500:
        return ApiServerUnreachable(f"{what}: the cluster cannot answer now ({error.status_code}): {text}")
    return RequestRejected(f"{what}: HTTP {error.status_code}: {text}", code=error.status_code)
