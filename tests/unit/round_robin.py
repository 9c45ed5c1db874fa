"""An address with several servers behind it: each request goes to the next one, as behind a router for HTTP."""

from __future__ import annotations

import http.client
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_NOT_PASSED_ON = ("connection", "keep-alive", "transfer-encoding")


@contextmanager
def round_robin(urls: Sequence[str]) -> Iterator[str]:
    """The address of the router, which closes each connection after its answer."""
    turns, lock = itertools.cycle(urls), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's word
            pass

        def pass_on(self) -> None:
            with lock:
                server = urlsplit(next(turns))
            far = http.client.HTTPConnection(str(server.hostname), server.port, timeout=60)
            try:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED_ON}
                far.request(self.command, self.path, body or None, headers)
                answer = far.getresponse()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in _NOT_PASSED_ON:
                        self.send_header(name, value)
                self.end_headers()
                while piece := answer.read1(65536):
                    self.wfile.write(piece)
            except OSError:  # the client, or the server, has left
                self.close_connection = True
            finally:
                far.close()

        def do_GET(self) -> None:
            self.pass_on()

        def do_POST(self) -> None:
            self.pass_on()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
