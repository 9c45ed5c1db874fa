"""The client for checks: what it sends, what its errors say, and what they never say."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from threading import Thread
from typing import Any

import httpx
import pytest

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.load.connections import parse_address
from pytest_vllm_stage.serving import client as client_module
from pytest_vllm_stage.serving.client import CHAT, EndpointClient, RequestFailed, StreamBroken, Target

TARGET = Target("full", "m", "http://server:8080", api_key=Secret("sk-very-secret"))
Answering = Callable[[httpx.Request], httpx.Response]


def client(answering: Answering) -> EndpointClient:
    return EndpointClient(TARGET, transport=httpx.MockTransport(answering))


def always(status: int, body: Any, **headers: str) -> EndpointClient:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client(lambda _: httpx.Response(status, content=content, headers=headers))


def chunk(text: str | None = None, **more: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    return b"data: " + json.dumps({"id": "c", "choices": [{"index": 0, "delta": delta, **more}]}).encode() + b"\n\n"


def test_a_target_that_is_not_reachable_gets_no_request() -> None:
    sent: list[httpx.Request] = []
    target = Target("full", "m", "", unreachable="inferenceservice/m is not Ready (Failed: no GPU)")

    def answering(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200)

    nowhere = EndpointClient(target, transport=httpx.MockTransport(answering))
    for ask in (nowhere.health, nowhere.models, lambda: nowhere.chat("hi"), lambda: nowhere.stream_chat("hi")):
        with pytest.raises(RequestFailed, match=r"was not sent: inferenceservice/m is not Ready \(Failed: no GPU\)"):
            ask()
    nowhere.close()
    assert sent == []


def test_a_request_is_sent_once_with_model_and_key() -> None:
    seen: list[httpx.Request] = []

    def answering(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(503, text="overloaded")

    with pytest.raises(RequestFailed) as failure:
        client(answering).chat("hi", max_tokens=3)
    assert len(seen) == 1, "a failed request was sent again"
    assert json.loads(seen[0].content) == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 3,
    }
    assert seen[0].headers["authorization"] == "Bearer sk-very-secret"
    assert str(failure.value) == "POST /v1/chat/completions (model m) answered 503 Service Unavailable: overloaded"
    assert failure.value.status == 503
    assert isinstance(failure.value, StageFailure)


def test_a_gateways_path_goes_in_front_of_every_request() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        return httpx.Response(200, json={"data": [], "version": "1"})

    target = dataclasses.replace(TARGET, base_url="http://gateway/team/qwen")
    with EndpointClient(target, transport=httpx.MockTransport(answer)) as client:
        client.models()
        client.version()
    assert seen == ["/team/qwen/v1/models", "/team/qwen/version"]
    assert parse_address(target.base_url).prefix == "/team/qwen"


def test_the_key_is_never_shown() -> None:
    with pytest.raises(RequestFailed) as failure:
        always(401, {"error": "bad key sk-very-secret"}).models()
    assert "sk-very-secret" not in f"{failure.value!r} {failure.value} {failure.value.body} {always(200, {})!r}"
    assert "bad key ***" in str(failure.value)


def test_a_long_body_is_cut_in_the_message_and_whole_in_the_attribute() -> None:
    with pytest.raises(RequestFailed) as failure:
        always(500, b"x" * 5000).health()
    assert len(str(failure.value)) < 600
    assert "(5000 characters)" in str(failure.value)
    assert len(failure.value.body) == 5000


def test_an_unreachable_server_is_named() -> None:
    def answering(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[Errno 111] Connection refused", request=request)

    with pytest.raises(
        RequestFailed, match="GET /health at http://server:8080 got no response: ConnectError"
    ) as failure:
        client(answering).health()
    assert failure.value.status is None
    assert failure.value.hint == "curl -sv http://server:8080/health"


@pytest.mark.parametrize(
    ("call", "body", "message"),
    [
        (lambda c: c.models(), {"object": "list"}, "GET /v1/models lists no models"),
        (
            lambda c: c.models(),
            b"<html>",
            "answered 200, but not with a JSON object, sent by a web page: an empty body",
        ),
        (lambda c: c.chat("x"), {"choices": []}, "the answer has no text in its first choice"),
        (lambda c: c.chat("x"), {"choices": [{"message": {"content": None}}]}, "the answer has no text"),
        (lambda c: c.completion("x"), {"choices": [{}]}, "the answer has no text"),
        (lambda c: c.completion("x").usage, {"choices": [{"text": "a"}]}, "has no token counts: usage is null"),
        (
            lambda c: c.completion("x").usage,
            {"choices": [{"text": "a"}], "usage": {"prompt_tokens": 1, "completion_tokens": "2", "total_tokens": 3}},
            "has no token counts",
        ),
        (lambda c: c.tokenize("x"), {"tokens": [1]}, "POST /tokenize gave no tokens"),
        (lambda c: c.detokenize([1]), {"text": "x"}, "POST /detokenize gave no text"),
        (lambda c: c.metrics(), b"what?", "GET /metrics: line 1 is not a sample"),
    ],
)
def test_an_answer_without_what_was_asked_for_is_a_failure(
    call: Callable[[EndpointClient], object], body: Any, message: str
) -> None:
    with pytest.raises(RequestFailed, match=message):
        call(always(200, body))


def test_tokenize_takes_one_of_two() -> None:
    with pytest.raises(TypeError, match="either a prompt or messages"):
        always(200, {}).tokenize("x", messages="y")


def test_raw_gives_back_any_status() -> None:
    assert always(418, b"teapot").raw("POST", CHAT, content=b"{").status_code == 418


def test_a_stream_is_put_together() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    end = b'data: {"id": "c", "choices": [], "usage": ' + json.dumps(usage).encode() + b"}\n\ndata: [DONE]\n\n"
    body = chunk("", role="x") + chunk("Hel") + chunk("lo") + chunk(finish_reason="stop") + end
    answer = always(200, body).stream_chat("x").read()
    assert answer.text == "Hello"
    assert [delta.text for delta in answer.deltas] == ["Hel", "lo"]
    assert answer.finish_reasons == ["stop"]
    assert [chunk["usage"] for chunk in answer.usage_chunks] == [usage]
    assert answer.events[-1].data == "[DONE]"
    assert answer.sent_at < answer.deltas[0].arrived_at <= answer.ended_at


def test_a_streamed_completion_is_put_together() -> None:
    answer = always(200, b'data: {"choices": [{"text": "ab", "finish_reason": "length"}]}\n\n').stream_completion("x")
    assert answer.read().text == "ab"


@pytest.mark.parametrize(
    "event", [b'{"error": {"message": "engine died", "code": 500}}', b'{"object": "error", "message": "\\"error\\""}']
)
def test_an_error_inside_a_200_stream_is_a_failure(event: bytes) -> None:
    stream = always(200, chunk("Hel") + b"data: " + event + b"\n\ndata: [DONE]\n\n").stream_chat("x")
    seen = []
    with pytest.raises(StreamBroken, match="carries an error inside its 200") as failure, stream:
        seen += list(iter(stream))
    assert "after 2 events" in str(failure.value)
    assert failure.value.status == 200


def test_text_about_an_error_is_not_an_error() -> None:
    answer = always(200, chunk('"error" is a word') + b"data: [DONE]\n\n").stream_chat("x").read()
    assert answer.text == '"error" is a word'


def test_a_cut_stream_is_a_failure() -> None:
    class Cut(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield chunk("Hel")
            raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")

    stream = client(lambda _: httpx.Response(200, stream=Cut())).stream_chat("x")
    with pytest.raises(StreamBroken, match=r"(?s)was cut: peer closed connection.*after 1 events.*last event: data:"):
        stream.read()


@pytest.mark.parametrize("body", [b"data: {half\n\n", b"data: [1]\n\n", b"data: \xff\n\n"])
def test_a_garbled_stream_is_a_failure(body: bytes) -> None:
    with pytest.raises(StreamBroken, match=r"not JSON|not a JSON object|not UTF-8"):
        always(200, body).stream_chat("x").read()


HAPROXY_504 = "<html><body><h1>504 Gateway Time-out</h1>\nThe server didn't respond in time.\n</body></html>\n"
ROUTER_503 = "<html><head><title>x</title></head><body><h1>Application is not available</h1></body></html>"
RBAC_403 = "Forbidden (user=system:serviceaccount:n:a, verb=get, resource=inferenceservices, subresource=)"


@pytest.mark.parametrize(
    ("status", "page", "message", "hint"),
    [
        (
            504,
            HAPROXY_504,
            "Out, sent by HAProxy, which OpenShift's router is: 504 Gateway Time-out The server",
            "=300s",
        ),
        (503, ROUTER_503, "Unavailable, sent by the OpenShift router: Application is not available", "endpointslices"),
        (403, RBAC_403, "Forbidden, sent by kube-rbac-proxy: Forbidden (user=", "docs/access.md"),
    ],
)
def test_gateways_own_error_names_the_gateway_and_the_next_step(
    status: int, page: str, message: str, hint: str
) -> None:
    with pytest.raises(RequestFailed) as failed:
        always(status, page.encode(), **{"content-type": "text/html" if "<" in page else "text/plain"}).health()
    assert message.lower() in failed.value.message.lower()
    assert hint in failed.value.hint
    assert failed.value.status == status


def test_servers_own_error_names_no_gateway() -> None:
    with pytest.raises(RequestFailed) as failed:
        always(504, {"error": {"message": "The server didn't respond in time."}}).health()
    assert "sent by" not in failed.value.message
    assert failed.value.hint == ""


def test_a_refused_stream_says_why() -> None:
    with pytest.raises(RequestFailed, match=r"answered 404 Not Found: .*no such model") as failure:
        always(404, {"error": {"message": "no such model"}}).stream_chat("x")
    assert not isinstance(failure.value, StreamBroken)


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.mark.parametrize(("kept_s", "connections"), [(0.0, 3), (60.0, 1)])
def test_a_connection_that_was_idle_too_long_gets_no_request(
    monkeypatch: pytest.MonkeyPatch, kept_s: float, connections: int
) -> None:
    monkeypatch.setattr(client_module, "KEPT_IDLE_S", kept_s)
    seen = set()

    class Kept(_Healthy):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.add(self.client_address)
            super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Kept)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        with EndpointClient(Target("full", "m", f"http://127.0.0.1:{server.server_port}")) as endpoint:
            for _ in range(3):
                endpoint.health()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert len(seen) == connections


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The URL of a server with a self-signed certificate, and the certificate's file."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = HTTPServer(("127.0.0.1", 0), _Healthy)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}", str(certificate)
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_certificate_is_verified_against_the_given_authorities(tls_server: tuple[str, str]) -> None:
    url, certificate = tls_server
    with EndpointClient(Target("full", "m", url, ca_file=certificate)) as trusting:
        trusting.health()
    with (
        EndpointClient(Target("full", "m", url)) as doubting,
        pytest.raises(RequestFailed, match="an authority that is not trusted"),
    ):
        doubting.health()


def test_a_client_without_tls_loads_no_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []
    for name in ("load_verify_locations", "load_default_certs"):
        monkeypatch.setattr(SSLContext, name, lambda *_arguments, **_given: loaded.append(1))
    EndpointClient(Target("full", "m", "http://127.0.0.1:9")).close()
    assert not loaded
    EndpointClient(Target("full", "m", "https://127.0.0.1:9")).close()
    assert loaded


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch, tls_server: tuple[str, str]) -> None:
    url, certificate = tls_server
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with EndpointClient(Target("full", "m", url, ca_file=certificate)) as direct:
        direct.health()
