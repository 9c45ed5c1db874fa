"""A port-forward to a pod whose port speaks TLS with a certificate for its Service, as a protected model's does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from pytest_vllm_stage.cluster import client
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.stage.reach.forward import ServiceForward
from tests.real.in_cluster_job import host_folders, host_volumes, use_host
from tests.real.live_stage import run_kubectl
from tests.unit.made_certificates import Authority

pytestmark = pytest.mark.real

NAMESPACE, NAME, PORT = "forward-tls", "secure", 8443
SERVER = """
import http.server, ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/certificate/leaf.pem")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"verified")
server = http.server.ThreadingHTTPServer(("", 8443), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@pytest.fixture
def authority(simulated_cluster: ClusterFacts, tmp_path: Path) -> Iterator[Authority]:
    """The authority of the server in the pod, which is Ready."""
    (tmp_path / "authority").mkdir()
    made = Authority(tmp_path / "authority", "openshift-service-serving-signer")
    folder = tmp_path / "certificate"
    folder.mkdir()
    (folder / "leaf.pem").write_text(made.issue(f"{NAME}.{NAMESPACE}.svc").read_text())
    folders = host_folders(simulated_cluster) | {"/certificate": str(folder)}
    probe = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
    container: dict[str, Any] = {"name": NAME, "command": ["python3", "-c", SERVER], "env": []}
    container["readinessProbe"] = probe
    use_host(container, simulated_cluster, folders, {})
    labels = {"app": NAME}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "labels": labels},
        "spec": {"containers": [container], "volumes": host_volumes(folders), "terminationGracePeriodSeconds": 0},
    }
    ports = [{"name": "https", "port": PORT, "targetPort": PORT}]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME}}
    service |= {"spec": {"selector": labels, "ports": ports}}
    run_kubectl(simulated_cluster, "default", "create", "namespace", NAMESPACE)
    run_kubectl(simulated_cluster, NAMESPACE, "apply", "-f", "-", manifest=yaml.dump_all([pod, service]))
    run_kubectl(simulated_cluster, NAMESPACE, "wait", "--for=condition=Ready", f"pod/{NAME}", "--timeout=50s")
    yield made
    run_kubectl(simulated_cluster, "default", "delete", "namespace", NAMESPACE, "--wait=false")


def test_certificate_is_verified_for_the_service_through_a_port_forward(
    simulated_cluster: ClusterFacts, authority: Authority
) -> None:
    with client.connection(simulated_cluster.kubeconfig, simulated_cluster.context) as kube:
        forward = ServiceForward(kube, NAMESPACE, NAME, str(PORT), tls=True)
        forward.trust(str(authority.certificate))
        answer = httpx.get(f"http://{forward.address}/", timeout=60, trust_env=False)
        forward.close()
    assert (answer.status_code, answer.text) == (200, "verified")
    assert forward.find_break(0.0) == ""
