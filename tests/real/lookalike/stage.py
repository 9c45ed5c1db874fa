"""A stage on the local cluster that is reached as on OpenShift: by the hosts of its Routes, through routers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.stage import client, objects
from pytest_vllm_stage.stage.deploy import teardown
from pytest_vllm_stage.stage.protection import is_protected
from tests.real.live_stage import SILENT, deploy, run_kubectl
from tests.real.lookalike.reviewer import serve_reviews
from tests.real.lookalike.route_definition import load_route_definition
from tests.real.lookalike.router import TIMEOUT_ANNOTATION, Upstream

ROOT = Path(__file__).parents[3]
NAMESPACE = "lookalike"
MODELS = {"full": "smollm2-135m", "quantized": "smollm2-135m-quantized"}
PROFILE = Path(__file__).with_name("profile.toml")
OVERLAY = Path(__file__).with_name("overlay")
#: Where OpenShift publishes its authorities.
PUBLISHED = "openshift-config-managed"
CRD = "customresourcedefinition/routes.route.openshift.io"
RUN_S = 400


class Outcome(NamedTuple):
    """A pytest run that ended."""

    status: int
    output: str
    record: dict[str, Any]

    @property
    def first_screen(self) -> str:
        """What a person sees without scrolling, the run's summary at the end of the output, in one line."""
        return " ".join(self.output[self.output.index("= vllm-stage run ") :].split())


@dataclass(frozen=True)
class RoutedStage:
    """The stage, and what is behind each of its Routes.

    Attributes:
        cluster: Its cluster.
        upstreams: Role to the Route and its Service.
    """

    cluster: ClusterFacts
    upstreams: Mapping[str, Upstream]

    def run(self, address: str, directory: Path, *arguments: str) -> Outcome:
        """Run pytest as a user with a kubeconfig, for whom the Routes' hosts have this address.

        The hosts are in a file that only this process and its children see in the place of /etc/hosts.
        """
        directory.mkdir(parents=True)
        hosts = directory / "hosts"
        names = " ".join(upstream.host for upstream in self.upstreams.values())
        hosts.write_text(f"127.0.0.1 localhost\n{address} {names}\n")
        plain = {key: value for key, value in os.environ.items() if key not in ("PYTEST_ADDOPTS", "VLLM_STAGE_API_KEY")}
        environment = plain | {"KUBECONFIG": self.cluster.kubeconfig}
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
    run_kubectl(cluster, "default", "apply", "--server-side", "-f", "-", manifest=yaml.dump(load_route_definition()))
    run_kubectl(cluster, "default", "wait", "--for=condition=Established", CRD)
    run_kubectl(cluster, "default", "create", "namespace", PUBLISHED)
    published = ("create", "configmap", "default-ingress-cert", f"--from-file=ca-bundle.crt={authority}")
    run_kubectl(cluster, PUBLISHED, *published)
    deploy(cluster, OVERLAY, NAMESPACE, MODELS, folder)
    with serve_reviews(cluster, NAMESPACE) as reviews:
        upstreams = {role: _admit(cluster, service, reviews) for role, service in MODELS.items()}
        yield RoutedStage(cluster, upstreams)
    # Other tests share the cluster.
    teardown.teardown(cluster, NAMESPACE, NAMESPACE, {"teardown_s": 120}, SILENT)
    run_kubectl(cluster, "default", "delete", "--wait=false", f"namespace/{PUBLISHED}", CRD)


def _admit(cluster: ClusterFacts, name: str, reviews: str) -> Upstream:
    """Admit the Route of an InferenceService, as the router does that takes it."""
    with client.connection(cluster, NAMESPACE) as kube:
        route = objects.get(kube, "Route.route.openshift.io", name, NAMESPACE)
        service = objects.get(kube, "Service", f"{name}-predictor", NAMESPACE)
        protected = objects.get(kube, "InferenceService", name, NAMESPACE)
    assert route is not None
    assert service is not None
    assert protected is not None
    host = route["spec"]["host"]
    condition = {"type": "Admitted", "status": "True"}
    status = {"status": {"ingress": [{"host": host, "routerName": "default", "conditions": [condition]}]}}
    patch = ("--subresource=status", "--type=merge", "-p", json.dumps(status))
    run_kubectl(cluster, NAMESPACE, "patch", f"route.route.openshift.io/{name}", *patch)
    return Upstream(
        host,
        f"{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}",
        (route["metadata"].get("annotations") or {}).get(TIMEOUT_ANNOTATION, ""),
        f"{reviews}/{name}" if is_protected(protected) else "",
    )
