"""The few calls to the API server that starting a cluster needs.

They use the standard library: they create what discovery and the official client rely on, and the supervisor, which
lives as long as the cluster, would otherwise hold the official client's 50 MB.
"""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any

from pytest_vllm_stage.cluster.local.layout import API_PORT, Layout
from pytest_vllm_stage.core.errors import EnvironmentUnusable

Object = dict[str, Any]
#: What a call raises when there is no answer, or an answer that is not HTTP.
CALL_FAILED = (OSError, http.client.HTTPException)


class BootstrapCallRejected(EnvironmentUnusable):
    """The API server answered with an error.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, status: int = 0, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class BootstrapApi:
    """Calls one cluster's API server as its administrator.

    Args:
        layout: The paths of its certificates.
        timeout_s: Seconds until a call fails.
    """

    def __init__(self, layout: Layout, timeout_s: float = 30.0) -> None:
        self._host = str(layout.addresses.node)
        self._timeout_s = timeout_s
        self._tls = ssl.create_default_context(cafile=layout.pki.certificate("ca"))
        self._tls.load_cert_chain(layout.pki.certificate("admin"), layout.pki.key("admin"))

    def get(self, path: str) -> Object:
        """Read an object, a list, or any other resource at a path."""
        return self.call("GET", path)

    def create(self, path: str, body: Object) -> Object:
        """Create an object in the collection at ``path``."""
        return self.call("POST", path, body)

    def merge(self, path: str, changes: Object) -> Object:
        """Change fields of an object by a merge patch; None removes a field."""
        return self.call("PATCH", path, changes, "application/merge-patch+json")

    def call(self, method: str, path: str, body: Object | None = None, media: str = "application/json") -> Object:
        """One call.

        Raises:
            BootstrapCallRejected: the answer is an error.
            OSError, http.client.HTTPException: there is no answer.
        """
        connection = http.client.HTTPSConnection(self._host, API_PORT, timeout=self._timeout_s, context=self._tls)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": media, "Accept": "application/json"})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            detail = text.decode(errors="replace")[:500]
            raise BootstrapCallRejected(
                f"{method} {path}: the API server answered {response.status}: {detail}", response.status
            )
        answer: Object = json.loads(text)
        return answer
