"""A stage on the local cluster that is reached as on OpenShift: by the hosts of its Routes, through routers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.stage.deploy import teardown
from pytest_vllm_stage.stage.facts import StageFacts
from tests.real.live_stage import SILENT, deploy, run_kubectl
from tests.real.lookalike.earlier_results import publish_results
from tests.real.lookalike.reviewer import review_path, serve_reviews
from tests.real.lookalike.route_definition import load_route_definition
from tests.real.lookalike.router import TIMEOUT_ANNOTATION, Upstream
from tests.real.lookalike.validator import Validator, create_validator

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
NAMESPACE = "lookalike"
MODELS = {"full": "smollm2-135m", "quantized": "smollm2-135m-quantized"}
PROFILE = HERE / "profile.toml"
#: Where OpenShift publishes its authorities, and where OpenShift AI has its registries.
PUBLISHED, REGISTRIES = "openshift-config-managed", "rhoai-model-registries"
REGISTRY = "model-registry"
#: The ServiceAccounts whose tokens the validator may request: the protected model's own, and one that may not get it.
ACCOUNTS = (f"{MODELS['quantized']}-sa", "default")
DEFINITIONS = (
    "customresourcedefinition/routes.route.openshift.io",
    "customresourcedefinition/modelregistries.modelregistry.opendatahub.io",
)
RUN_S = 900


class Outcome(NamedTuple):
    """A pytest run that ended."""

    status: int
    output: str
    record: dict[str, Any]

    @property
    def first_screen(self) -> str:
        """What a person sees without scrolling, the run's summary at the end of the output, in one line."""
        return " ".join(self.output[self.output.index("= vllm-stage run ") :].split())

    def names(self, outcome: str) -> set[str]:
        """The tests with an outcome."""
        return {test["name"] for test in self.record["tests"] if test["outcome"] == outcome}


@dataclass(frozen=True)
class RoutedStage:
    """The stage, and what is behind each of its Routes.

    Attributes:
        cluster: Its cluster.
        upstreams: Route to its host and its server.
        validator: Who runs the suites.
    """

    cluster: ClusterFacts
    upstreams: Mapping[str, Upstream]
    validator: Validator

    def run(self, address: str, directory: Path, *arguments: str, validator: Validator | None = None) -> Outcome:
        """Run pytest as a user with a kubeconfig, for whom the Routes' hosts have this address.

        The hosts are in a file that only this process and its children see in the place of /etc/hosts.
        """
        directory.mkdir(parents=True)
        hosts = directory / "hosts"
        names = " ".join(upstream.host for upstream in self.upstreams.values())
        hosts.write_text(f"127.0.0.1 localhost\n{address} {names}\n")
        plain = {key: value for key, value in os.environ.items() if key not in ("PYTEST_ADDOPTS", "VLLM_STAGE_API_KEY")}
        user = validator or self.validator
        environment = plain | {"KUBECONFIG": str(user.kubeconfig), "VLLM_STAGE_REGISTRY_TOKEN": user.token}
        environment["PATH"] = f"{Path(self.cluster.kubectl).parent}:{environment['PATH']}"
        options = [f"--stage-run-dir={directory / 'run'}", f"--stage-context={self.cluster.context}"]
        options += [f"--stage-profile={PROFILE}", "--stage-report=never"]
        pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, *arguments]
        mounted = 'mount --bind "$0" /etc/hosts && exec "$@"'
        command = ["unshare", "--mount", "--propagation=private", "sh", "-c", mounted, str(hosts), *pytest]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=RUN_S
        )
        record = directory / "run" / "run.json"
        assert record.is_file(), done.stdout + done.stderr
        return Outcome(done.returncode, done.stdout + done.stderr, json.loads(record.read_text()))


@contextmanager
def deploy_routed_stage(cluster: ClusterFacts, authority: Path, folder: Path) -> Iterator[RoutedStage]:
    """Deploy the stage with its Routes, and publish the authority of their certificates as OpenShift does."""
    definitions = [load_route_definition(), yaml.safe_load((HERE / "registry" / "definition.yaml").read_text())]
    run_kubectl(cluster, "default", "apply", "--server-side", "-f", "-", manifest=yaml.dump_all(definitions))
    run_kubectl(cluster, "default", "wait", "--for=condition=Established", *DEFINITIONS)
    run_kubectl(cluster, "default", "create", "namespace", PUBLISHED)
    published = ("create", "configmap", "default-ingress-cert", f"--from-file=ca-bundle.crt={authority}")
    run_kubectl(cluster, PUBLISHED, *published)
    run_kubectl(cluster, REGISTRIES, "apply", "-k", str(HERE / "registry"))
    facts = deploy(cluster, HERE / "overlay", NAMESPACE, MODELS, folder)
    run_kubectl(cluster, REGISTRIES, "wait", "--for=condition=Available", f"deployment/{REGISTRY}", "--timeout=50s")
    with serve_reviews(cluster) as reviews:
        yield _publish_stage(cluster, facts, folder, reviews)
    # Other tests share the cluster.
    teardown.teardown(cluster, NAMESPACE, NAMESPACE, {"teardown_s": 120}, SILENT)
    gone = (f"namespace/{PUBLISHED}", f"namespace/{REGISTRIES}", *DEFINITIONS)
    run_kubectl(cluster, "default", "delete", "--wait=false", *gone)


def _publish_stage(cluster: ClusterFacts, facts: StageFacts, folder: Path, reviews: str) -> RoutedStage:
    """Admit the Routes, publish results of an earlier run, and give the validator its rights."""
    registry = _address_of(cluster, REGISTRIES, REGISTRY)
    guards = {
        "quantized": review_path("inferenceservices.serving.kserve.io", NAMESPACE, MODELS["quantized"]),
        "registry": review_path("services", REGISTRIES, REGISTRY),
    }
    upstreams = {
        role: _admit(cluster, NAMESPACE, model, _address_of(cluster, NAMESPACE, f"{model}-predictor"))
        for role, model in MODELS.items()
    }
    upstreams["minio"] = _admit(cluster, NAMESPACE, "minio", _address_of(cluster, NAMESPACE, "minio"))
    upstreams["registry"] = _admit(cluster, REGISTRIES, f"{REGISTRY}-https", registry)
    for name, path in guards.items():
        upstreams[name] = replace(upstreams[name], review=f"{reviews}/{path}")
    publish_results(cluster, facts, f"http://{registry}", folder / "earlier")
    return RoutedStage(cluster, upstreams, create_validator(cluster, NAMESPACE, ACCOUNTS, folder))


def _address_of(cluster: ClusterFacts, namespace: str, service: str) -> str:
    """Cluster IP and port of a Service."""
    path = "{.spec.clusterIP}:{.spec.ports[0].port}"
    return run_kubectl(cluster, namespace, "get", f"service/{service}", "-o", f"jsonpath={path}")


def _admit(cluster: ClusterFacts, namespace: str, name: str, address: str) -> Upstream:
    """Admit a Route, as the router does that takes it."""
    route = json.loads(run_kubectl(cluster, namespace, "get", f"route.route.openshift.io/{name}", "-o", "json"))
    host = route["spec"]["host"]
    condition = {"type": "Admitted", "status": "True"}
    status = {"status": {"ingress": [{"host": host, "routerName": "default", "conditions": [condition]}]}}
    patch = ("--subresource=status", "--type=merge", "-p", json.dumps(status))
    run_kubectl(cluster, namespace, "patch", f"route.route.openshift.io/{name}", *patch)
    timeout = (route["metadata"].get("annotations") or {}).get(TIMEOUT_ANNOTATION, "")
    return Upstream(host, address, timeout)
