"""A scripted HTTP(S) server on loopback, an S3 API over a dict on it, and its certificate."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """What the server was asked."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()}


@dataclass(frozen=True)
class Reply:
    """What it answers."""

    status: int
    body: str | bytes = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class WebServer:
    """A server that is running.

    Attributes:
        url: Its root.
        requests: What it was asked, in order.
    """

    url: str
    requests: list[Request] = field(default_factory=list)


@contextmanager
def web_server(
    answer: Callable[[Request], Reply], certificate: Path | ssl.SSLContext | None = None
) -> Iterator[WebServer]:
    """Serve; ``certificate`` is a PEM file that holds the key too, or the server's whole TLS."""
    seen: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            request = Request(self.command, self.path, dict(self.headers.items()), body)
            seen.append(request)
            reply = answer(request)
            content = reply.body.encode() if isinstance(reply.body, str) else reply.body
            self.send_response_only(reply.status)
            for name, value in {"content-length": str(len(content)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = respond  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificate is not None:
        if isinstance(certificate, Path):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
        else:
            context = certificate
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield WebServer(f"{scheme}://127.0.0.1:{server.server_port}", seen)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def self_signed(folder: Path) -> Path:
    """A PEM file with a key and a certificate for 127.0.0.1 that signs itself."""
    pem = folder / "loopback.pem"
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=loopback"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *names], check=True, capture_output=True)
    pem.write_text(key.read_text() + certificate.read_text())
    return pem


S3_HEADERS = {"content-type": "application/xml", "server": "MinIO", "x-amz-request-id": "17E0"}


def s3_error(status: int, code: str, message: str = "as the server explains it") -> Reply:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Reply(status, body, S3_HEADERS)


def s3_objects(objects: Mapping[str, bytes]) -> Callable[[Request], Reply]:
    """An S3 API with ``bucket/key`` to content, for reads and lists; requests without a signature are denied."""

    def answer(request: Request) -> Reply:
        if "Authorization" not in request.headers:
            return s3_error(403, "AccessDenied")
        path = unquote(urlsplit(request.path).path).strip("/")
        if "policy" in request.query:
            return s3_error(404, "NoSuchBucketPolicy")
        if path in objects:
            return Reply(200, objects[path])
        if "list-type" in request.query:
            return _listing(path, request.query, objects)
        return s3_error(404, "NoSuchKey")

    return answer


def _listing(bucket: str, query: Mapping[str, str], objects: Mapping[str, bytes]) -> Reply:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    keys = [key.removeprefix(f"{bucket}/") for key in objects if key.startswith(f"{bucket}/{prefix}")]
    ends = {key: key.find(delimiter, len(prefix)) if delimiter else -1 for key in sorted(keys)}
    folders = sorted({key[: end + 1] for key, end in ends.items() if end >= 0})
    contents = "".join(f"<Contents><Key>{key}</Key></Contents>" for key, end in ends.items() if end < 0)
    prefixes = "".join(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>" for folder in folders)
    return Reply(200, f"<ListBucketResult>{contents}{prefixes}</ListBucketResult>", S3_HEADERS)
