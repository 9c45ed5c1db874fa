"""Reviews tokens as kube-rbac-proxy does: a TokenReview, then a SubjectAccessReview, both by the cluster's API server.

A stand-in for kube-rbac-proxy itself, whose build takes minutes; the requests pass through HAProxy, which asks here.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pytest_vllm_stage.cluster import client
from pytest_vllm_stage.cluster.facts import ClusterFacts

#: Seconds that an answer is remembered; kube-rbac-proxy does so too.
CACHED_S = 10.0


class Reviewer:
    """Decides about tokens.

    Args:
        cluster: The cluster whose tokens they are.
    """

    def __init__(self, cluster: ClusterFacts) -> None:
        self._kube = client.connect_to(cluster)
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[float, int]] = {}

    def close(self) -> None:
        self._kube.client.close()

    def review(self, token: str, guarded: str) -> int:
        """200, 401 for a token that is not valid, or 403 for a user that may not get an object.

        Args:
            token: What the request carries; empty where it carries none.
            guarded: See `review_path`.
        """
        with self._lock:
            reviewed_at, status = self._known.get((token, guarded), (-CACHED_S, 0))
            if time.monotonic() - reviewed_at >= CACHED_S:
                status = self._decide(token, guarded)
                self._known[token, guarded] = time.monotonic(), status
            return status

    def _decide(self, token: str, guarded: str) -> int:
        if not token:
            return 401
        reviewed = self._create("authentication.k8s.io/v1", "TokenReview", {"token": token})
        if not reviewed.get("authenticated"):
            return 401
        user = reviewed["user"]
        kind, namespace, name = guarded.split("/")
        resource, _, group = kind.partition(".")
        attributes = {"verb": "get", "group": group, "resource": resource, "namespace": namespace, "name": name}
        spec = {"user": user["username"], "groups": user["groups"], "resourceAttributes": attributes}
        allowed = self._create("authorization.k8s.io/v1", "SubjectAccessReview", spec).get("allowed")
        return 200 if allowed else 403

    def _create(self, version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        body = {"apiVersion": version, "kind": kind, "spec": spec}
        response = self._kube.request("post", f"/apis/{version}/{kind.lower()}s", body=body, serialize=False)
        return dict(json.loads(response.data)["status"])


def review_path(resource: str, namespace: str, name: str) -> str:
    """The path at the reviewer's server for those who may get an object.

    Args:
        resource: The object's, as ``inferenceservices.serving.kserve.io``.
        namespace: Its namespace.
        name: Its name.
    """
    return f"{resource}/{namespace}/{name}"


@contextmanager
def serve_reviews(cluster: ClusterFacts) -> Iterator[str]:
    """The URL of a server that answers a `review_path` with the status for the request's token."""
    reviewer = Reviewer(cluster)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            self.send_response(reviewer.review(token, self.path.strip("/")))
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        reviewer.close()
