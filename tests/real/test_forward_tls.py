"""A model's pod as Open Data Hub's KServe makes it: the engine, and kube-rbac-proxy at the port of its Service.

It is reached by a port-forward to a port that speaks TLS, with a certificate for the Service. The engine is the
simulated one, and the pod is made here; kube-rbac-proxy and its reviews are real.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from pytest_vllm_stage.cluster import client
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.cluster.local import components
from pytest_vllm_stage.serving.metrics import parse
from pytest_vllm_stage.stage import objects, revision
from pytest_vllm_stage.stage.drift import SERVING_CONTAINER
from pytest_vllm_stage.stage.observe.reader import StageReader
from pytest_vllm_stage.stage.pods import find_serving_port
from pytest_vllm_stage.stage.reach.forward import ServiceForward
from tests.real.in_cluster_job import host_folders, host_volumes, use_host
from tests.real.live_stage import SILENT, run_kubectl
from tests.real.lookalike.rbac_proxy import HEALTH_PORT, PORT, GuardedObject
from tests.unit.made_certificates import Authority

pytestmark = pytest.mark.real

NAMESPACE, NAME, CLIENT = "forward-tls", "secure", "client"
PROXY, BINDING = "kube-rbac-proxy", "forward-tls-auth-delegator"
GUARDED = GuardedObject("serving.kserve.io", "inferenceservices", NAMESPACE, NAME)
Object = dict[str, Any]


class GuardedModel(NamedTuple):
    """A model whose pod is Ready.

    Attributes:
        authority: That of its certificate.
        token: Of a user who may get it.
    """

    authority: Path
    token: str


def probe(port: int, path: str, scheme: str = "HTTP") -> Object:
    http = {"path": path, "port": port, "scheme": scheme}
    return {"httpGet": http, "periodSeconds": 1, "timeoutSeconds": 5}


def proxy_container(program: Path) -> Object:
    """The sidecar, before the engine: nothing may depend on the order."""
    arguments = [
        f"--secure-listen-address=:{PORT}",
        f"--proxy-endpoints-port={HEALTH_PORT}",
        "--upstream=http://localhost:8080",
        "--auth-header-fields-enabled=true",
        "--tls-cert-file=/proxy/leaf.pem",
        "--tls-private-key-file=/proxy/leaf.pem",
        "--config-file=/proxy/config-file.yaml",
    ]
    ports = [{"containerPort": PORT, "name": "https"}, {"containerPort": HEALTH_PORT, "name": "proxy"}]
    made = {"name": PROXY, "command": [str(program), *arguments], "env": [], "ports": ports}
    return made | {"readinessProbe": probe(HEALTH_PORT, "/healthz", "HTTPS")}


def engine_container() -> Object:
    command = ["python3", "-m", "pytest_vllm_stage.standins.engine", "--host=0.0.0.0", "--port=8080", f"--model={NAME}"]
    made = {"name": SERVING_CONTAINER, "command": command, "env": [], "ports": [{"containerPort": 8080}]}
    return made | {"readinessProbe": probe(8080, "/health")}


def make_pod(cluster: ClusterFacts, folder: Path) -> Object:
    """The pod; the proxy's files are in a folder."""
    program = components.ensure(SILENT, [PROXY])[PROXY]
    folders = host_folders(cluster) | {"/proxy": str(folder), str(program.parent): str(program.parent)}
    containers = [proxy_container(program), engine_container()]
    for container in containers:
        use_host(container, cluster, folders, {})
    spec = {"containers": containers, "volumes": host_volumes(folders), "terminationGracePeriodSeconds": 0}
    metadata = {"name": NAME, "labels": {"app": NAME, objects.SERVICE_LABEL: NAME}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.fixture
def model(simulated_cluster: ClusterFacts, tmp_path: Path) -> Iterator[GuardedModel]:
    """The pod, Ready, and its Service; the pod's account may review tokens, as that of a protected model."""
    (tmp_path / "authority").mkdir()
    made = Authority(tmp_path / "authority", "openshift-service-serving-signer")
    folder = tmp_path / "proxy"
    folder.mkdir()
    (folder / "leaf.pem").write_text(made.issue(f"{NAME}.{NAMESPACE}.svc").read_text())
    GUARDED.write_configuration(folder / "config-file.yaml")
    ports = [{"name": "https", "port": PORT, "targetPort": "https"}]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME}}
    service |= {"spec": {"selector": {"app": NAME}, "ports": ports}}

    def kubectl(*arguments: str, manifest: str = "") -> str:
        return run_kubectl(simulated_cluster, NAMESPACE, *arguments, manifest=manifest)

    kubectl("create", "namespace", NAMESPACE)
    account = f"--serviceaccount={NAMESPACE}:default"
    kubectl("create", "clusterrolebinding", BINDING, "--clusterrole=system:auth-delegator", account)
    kubectl("create", "serviceaccount", CLIENT)
    kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=240s")
    allowed = f"--resource={GUARDED.resource}.{GUARDED.group}"
    kubectl("create", "role", CLIENT, "--verb=get", allowed, f"--resource-name={NAME}")
    kubectl("create", "rolebinding", CLIENT, f"--role={CLIENT}", f"--serviceaccount={NAMESPACE}:{CLIENT}")
    kubectl("apply", "-f", "-", manifest=yaml.dump_all([make_pod(simulated_cluster, folder), service]))
    kubectl("wait", "--for=condition=Ready", f"pod/{NAME}", "--timeout=240s")
    yield GuardedModel(made.certificate, kubectl("create", "token", CLIENT).strip())
    kubectl("delete", "--wait=false", f"namespace/{NAMESPACE}", f"clusterrolebinding/{BINDING}")


def test_certificate_is_verified_for_the_service_through_a_port_forward_and_the_proxy_reviews_tokens(
    simulated_cluster: ClusterFacts, model: GuardedModel
) -> None:
    with client.connection(simulated_cluster.kubeconfig, simulated_cluster.context) as kube:
        forward = ServiceForward(kube, NAMESPACE, NAME, str(PORT), tls=True)
        forward.trust(str(model.authority))
        models = f"http://{forward.address}/v1/models"
        refused = httpx.get(models, timeout=60, trust_env=False)
        answer = httpx.get(models, timeout=60, trust_env=False, headers={"Authorization": f"Bearer {model.token}"})
        forward.close()
        assert (refused.status_code, answer.status_code) == (401, 200)
        assert [one["id"] for one in answer.json()["data"]] == [NAME]
        assert forward.find_break(0.0) == ""

        reader = StageReader(kube, simulated_cluster, NAMESPACE)
        assert "pytest_vllm_stage.standins.engine" in revision.serving(reader, NAME).arguments
        (pod,) = reader.listed("Pod", {objects.SERVICE_LABEL: NAME})
        text = objects.read_pod_path(kube, NAMESPACE, NAME, find_serving_port(pod), "metrics")
        assert parse(text).value("vllm:num_requests_running", model_name=NAME) == 0
