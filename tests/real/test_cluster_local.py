"""The real local cluster: what runs in it, what is reachable from outside, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.cluster import local
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.cluster.local import components, listing
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until

pytestmark = pytest.mark.real

SILENT = Journal()
Object = dict[str, Any]
NAMESPACE = "probe"


def until(what: str, true: Callable[[], bool], timeout_s: float = 60) -> None:
    wait_until(
        what,
        lambda: Observation(true(), "not yet"),
        timeout_s=timeout_s,
        journal=SILENT,
        interval_s=0.2,
        error=EnvironmentUnusable,
    )


@pytest.fixture(scope="module")
def before() -> dict[str, list[str]]:
    local.ensure_packages(SILENT)
    until("no other run has a cluster", lambda: local.running() == [], timeout_s=300)
    local.sweep(SILENT)
    return listing.snapshot()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "index.html").write_text("the weights\n")
    return folder


@pytest.fixture(scope="module")
def cluster(before: dict[str, list[str]], model: Path) -> Iterator[ClusterFacts]:
    mounts = {"weights": model, "python": Path(sys.base_prefix)}
    facts = local.start(run_id="test", lifeline_pid=os.getpid(), mounts=mounts, journal=SILENT, wait_s=300)
    yield facts
    assert facts.state_dir
    assert local.stop(facts.state_dir, SILENT) == []
    assert listing.difference(before, listing.snapshot()) == []


class Kubectl:
    """Runs kubectl against one cluster."""

    def __init__(self, facts: ClusterFacts) -> None:
        self.command = [facts.kubectl, "--kubeconfig", facts.kubeconfig, "--cache-dir", f"{facts.state_dir}/discovery"]

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Run it; what it printed."""
        result = subprocess.run(
            [*self.command, *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=300
        )
        assert result.returncode == 0, f"kubectl {' '.join(arguments)}: {result.stderr}"
        return result.stdout

    def apply(self, *objects: Object) -> None:
        """Server-side apply."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self("apply", "--server-side", "-f", "-", stdin=json.dumps(listed))

    def field(self, name: str, path: str) -> str:
        """A field of an object in the tests' namespace, by JSONPath."""
        return self("-n", NAMESPACE, "get", name, "-o", f"jsonpath={{{path}}}")


@pytest.fixture(scope="module")
def kubectl(cluster: ClusterFacts) -> Kubectl:
    runner = Kubectl(cluster)
    runner.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    return runner


def pod_spec(command: list[str], volumes: dict[str, Object] | None = None) -> Object:
    """A pod that runs a command of the host's in the almost empty image."""
    host = {name: {"hostPath": {"path": f"/{name}"}} for name in ("usr", "lib", "lib64")}
    everything: dict[str, Object] = {**host, **(volumes or {})}
    mounts = [{"name": name, "mountPath": f"/{name}", "readOnly": name in host} for name in everything]
    container = {"name": "main", "image": "vllm-stage.local/base:1", "command": command, "volumeMounts": mounts}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
        "volumes": [{"name": name, **source} for name, source in everything.items()],
    }


def metadata(name: str, **labels: str) -> Object:
    return {"name": name, "namespace": NAMESPACE, "labels": labels}


def pod(name: str, command: list[str], volumes: dict[str, Object] | None = None) -> Object:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata(name, app=name), "spec": pod_spec(command, volumes)}


def service(name: str, port: int) -> Object:
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": port}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata(name), "spec": spec}


def claim(name: str, size: str) -> Object:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata(name), "spec": spec}


def fetch(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="module")
def web(kubectl: Kubectl) -> str:
    weights: dict[str, Object] = {"weights": {"hostPath": {"path": "/mnt/vllm-stage/weights"}}}
    server = ["/usr/bin/python3", "-u", "-m", "http.server", "8000", "--directory", "/weights"]
    kubectl.apply(pod("web", server, weights), service("web", 8000))
    kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", "pod/web", "--timeout=240s")
    until("the server answers", lambda: answers(kubectl.field("pod/web", ".status.podIP"), 8000))
    return kubectl.field("service/web", ".spec.clusterIP")


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def run_pod(kubectl: Kubectl, name: str, command: list[str], volumes: dict[str, Object]) -> tuple[str, str]:
    """Run a pod to its end; its phase and its output."""
    kubectl.apply(pod(name, command, volumes))
    ended = ("Succeeded", "Failed")
    until(f"pod/{name} ended", lambda: kubectl.field(f"pod/{name}", ".status.phase") in ended)
    return kubectl.field(f"pod/{name}", ".status.phase"), kubectl("-n", NAMESPACE, "logs", name)


def test_versions_are_the_pinned_ones(cluster: ClusterFacts, kubectl: Kubectl) -> None:
    served = json.loads(kubectl("version", "-o", "json"))
    assert served["serverVersion"]["gitVersion"] == cluster.kubernetes_version == components.versions()["kubernetes"]
    assert served["clientVersion"]["gitVersion"] == cluster.kubernetes_version
    assert cluster.versions["kserve"] == "v0.20.0"


def test_kubeconfig_is_for_its_owner_only(cluster: ClusterFacts) -> None:
    assert Path(cluster.kubeconfig).stat().st_mode & 0o777 == 0o600
    assert cluster.state_dir
    assert {
        path.name for path in (Path(cluster.state_dir) / "pki").glob("*.key") if path.stat().st_mode & 0o077
    } == set()


def test_services_and_pods_answer_from_the_host(web: str, kubectl: Kubectl) -> None:
    assert fetch(f"http://{web}/") == "the weights\n"
    assert fetch(f"http://{kubectl.field('pod/web', '.status.podIP')}:8000/") == "the weights\n"


def test_logs_exec_and_port_forward(web: str, kubectl: Kubectl) -> None:
    fetch(f"http://{web}/")
    assert "GET / HTTP" in kubectl("-n", NAMESPACE, "logs", "web")
    assert kubectl("-n", NAMESPACE, "exec", "web", "--", "/usr/bin/cat", "/weights/index.html") == "the weights\n"
    command = [*kubectl.command, "-n", NAMESPACE, "port-forward", "service/web", ":80", "--address=127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
        assert forward.stdout
        port = forward.stdout.readline().split(" ->")[0].rpartition(":")[2]
        try:
            assert fetch(f"http://127.0.0.1:{port}/") == "the weights\n"
        finally:
            forward.terminate()


def test_a_pod_resolves_and_reaches_services_by_name(web: str, kubectl: Kubectl) -> None:
    script = (
        "import socket, ssl, urllib.request as u\n"
        "print(socket.gethostbyname('web'))\n"
        f"print(u.urlopen('http://web.{NAMESPACE}.svc.cluster.local').read().decode())\n"
        "ca = ssl.create_default_context(cafile='/var/run/secrets/kubernetes.io/serviceaccount/ca.crt')\n"
        "print(u.urlopen('https://kubernetes.default/livez', context=ca).status)\n"
    )
    phase, output = run_pod(kubectl, "resolver", ["/usr/bin/python3", "-c", script], {})
    assert (phase, output.split()) == ("Succeeded", [web, "the", "weights", "200"]), output


def test_what_is_mounted_cannot_be_written(kubectl: Kubectl, model: Path) -> None:
    weights: dict[str, Object] = {"weights": {"hostPath": {"path": "/mnt/vllm-stage/weights"}}}
    phase, output = run_pod(kubectl, "writer", ["/usr/bin/sh", "-c", "echo spoilt > /weights/index.html"], weights)
    assert phase == "Failed"
    assert "Read-only file system" in output
    assert (model / "index.html").read_text() == "the weights\n"


def test_the_interpreter_is_at_its_own_path(kubectl: Kubectl) -> None:
    home = Path(sys.base_prefix)
    volume: dict[str, Object] = {"home": {"hostPath": {"path": str(home), "type": "Directory"}}}
    phase, output = run_pod(kubectl, "interpreter", ["/usr/bin/ls", "/home/bin"], volume)
    assert phase == "Succeeded"
    assert f"python{sys.version_info.major}" in output


def test_claims_bind_when_a_volume_is_large_enough(kubectl: Kubectl) -> None:
    kubectl.apply(claim("fits", "5Gi"), claim("too-large", "6Gi"))
    volume: dict[str, Object] = {"data": {"persistentVolumeClaim": {"claimName": "fits"}}}
    phase, _ = run_pod(kubectl, "filler", ["/usr/bin/sh", "-c", "echo kept > /data/file"], volume)
    assert phase == "Succeeded"
    waiting: dict[str, Object] = {"data": {"persistentVolumeClaim": {"claimName": "too-large"}}}
    kubectl.apply(pod("unplaced", ["/usr/bin/true"], waiting))
    until(
        "unschedulable", lambda: "didn't find available persistent volumes" in kubectl.field("pod/unplaced", ".status")
    )
    assert kubectl.field("pvc/fits", ".status.phase") == "Bound"
    assert kubectl.field("pvc/too-large", ".status.phase") == "Pending"


def test_a_released_volume_is_emptied_and_used_again(cluster: ClusterFacts, kubectl: Kubectl) -> None:
    kubectl.apply(claim("passing", "1Gi"))
    volume: dict[str, Object] = {"data": {"persistentVolumeClaim": {"claimName": "passing"}}}
    run_pod(kubectl, "passenger", ["/usr/bin/sh", "-c", "mkdir /data/a; echo secret > /data/a/file"], volume)
    name = kubectl.field("pvc/passing", ".spec.volumeName")
    folder = Path(f"{cluster.state_dir}/volumes", name)
    assert (folder / "a" / "file").read_text() == "secret\n"
    kubectl("-n", NAMESPACE, "delete", "pod/passenger", "pvc/passing")
    until("made available again", lambda: kubectl("get", f"pv/{name}", "-o", "jsonpath={.status.phase}") == "Available")
    assert list(folder.iterdir()) == []


def test_an_inference_service_becomes_ready_with_weights_from_a_claim(kubectl: Kubectl) -> None:
    kubectl.apply(claim("model", "1Gi"))
    volume: dict[str, Object] = {"data": {"persistentVolumeClaim": {"claimName": "model"}}}
    script = "mkdir /data/small && echo loaded > /data/small/index.html"
    run_pod(kubectl, "loader", ["/usr/bin/sh", "-c", script], volume)
    spec = pod_spec(["/usr/bin/python3", "-u", "-m", "http.server", "8080", "--directory", "/mnt/models"])
    container = spec["containers"][0] | {
        "name": "kserve-container",
        "ports": [{"containerPort": 8080}],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}},
    }
    runtime = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": metadata("files"),
        "spec": {
            "supportedModelFormats": [{"name": "files"}],
            "containers": [container],
            "volumes": spec["volumes"],
        },
    }
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata("small"),
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "maxReplicas": 1,
                "model": {"modelFormat": {"name": "files"}, "runtime": "files", "storageUri": "pvc://model/small"},
            }
        },
    }
    kubectl.apply(runtime, service)
    kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", "inferenceservice/small", "--timeout=240s")
    address = kubectl.field("service/small-predictor", ".spec.clusterIP")
    assert address not in ("", "None")
    until("the predictor answers", lambda: answers(address, 80))
    assert fetch(f"http://{address}/") == "loaded\n"


def test_kserve_refuses_what_its_webhook_finds_wrong(kubectl: Kubectl) -> None:
    wrong = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "Wrong.Name", "namespace": NAMESPACE},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "files"}}}},
    }
    with pytest.raises(AssertionError, match=r"(?i)invalid|denied"):
        kubectl.apply(wrong)


def test_image_that_cannot_be_pulled_is_reported(kubectl: Kubectl) -> None:
    absent = pod("absent", ["/usr/bin/true"])
    absent["spec"]["containers"][0]["image"] = "registry.invalid/absent:1"
    kubectl.apply(absent)
    path = ".status.containerStatuses[0].state.waiting.reason"
    until("pull failed", lambda: kubectl.field("pod/absent", path) in ("ErrImagePull", "ImagePullBackOff"))


def test_second_start_names_the_holder(cluster: ClusterFacts) -> None:
    with pytest.raises(
        EnvironmentUnusable, match=r"another cluster is in use, and only one can run on a machine"
    ) as caught:
        local.start(run_id="second", lifeline_pid=os.getpid(), mounts={}, journal=SILENT)
    assert "of run test" in str(caught.value)
    assert str(cluster.state_dir) in str(caught.value)
    assert local.sweep(SILENT) == []
    assert [record.run_id for record in local.running()] == ["test"]


def test_nothing_listens_on_the_host(before: dict[str, list[str]], cluster: ClusterFacts) -> None:
    own = {int(line.split()[0]) for line in listing.processes()}
    assert len(own) > 10
    assert not own & _listening()
    changed = listing.difference(before, listing.snapshot())
    untouched = ("mounts", "iptables", "settings")
    assert [line for line in changed if line.split()[1].rstrip(":") in untouched] == []


def _listening() -> set[int]:
    """Processes that hold a listening TCP socket of the host's network namespace."""
    inodes = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        fields = [line.split() for line in Path(table).read_text().splitlines()[1:]]
        inodes |= {f"socket:[{field[9]}]" for field in fields if field[3] == "0A"}
    return {int(link.parts[2]) for link in Path("/proc").glob("[0-9]*/fd/*") if _target(link) in inodes}


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""
