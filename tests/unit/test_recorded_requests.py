"""Requests to the API server as the rights that they need."""

from __future__ import annotations

import pytest

from tests.real.recorded_requests import rights_of

APPLY = "application/apply-patch+yaml"


@pytest.mark.parametrize(
    ("method", "path", "content_type", "expected"),
    [
        ("GET", "/api/v1/namespaces/ns/pods?labelSelector=a", "", ["list pods "]),
        ("GET", "/api/v1/namespaces/ns/pods?watch=True", "", ["watch pods "]),
        ("GET", "/api/v1/namespaces/ns/pods/p/log?container=c", "", ["get pods/log "]),
        ("GET", "/api/v1/namespaces/ns/pods/p:8080/proxy/metrics", "", ["get pods/proxy "]),
        ("GET", "/api/v1/namespaces/ns", "", ["get namespaces "]),
        ("GET", "/api/v1/nodes", "", ["list nodes "]),
        ("PATCH", "/apis/batch/v1/namespaces/ns/jobs/j", APPLY, ["create jobs batch", "patch jobs batch"]),
        ("PATCH", "/api/v1/nodes/n", "application/merge-patch+json", ["patch nodes "]),
        ("DELETE", "/apis/batch/v1/namespaces/ns/jobs", "", ["deletecollection jobs batch"]),
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "", []),
        ("GET", "/apis/apps/v1", "", []),
        ("GET", "/version", "", []),
    ],
)  # fmt: skip
def test_a_request_needs_these_rights(method: str, path: str, content_type: str, expected: list[str]) -> None:
    found = rights_of(method, f"https://10.0.0.1:6443{path}", content_type)
    assert sorted(f"{right.verb} {right.resource} {right.group}" for right in found) == expected
