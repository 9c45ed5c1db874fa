"""A stage on the local cluster that is reached as on OpenShift: by the hosts of its Routes, through routers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pytest_vllm_stage.benchmark import job_runs
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.facts import StageFacts
from tests.real.live_stage import deploy, remove_in_background, run_kubectl
from tests.real.lookalike.earlier_results import publish_results
from tests.real.lookalike.rbac_proxy import GuardedObject, RbacProxy, run_rbac_proxy
from tests.real.lookalike.route_definition import load_route_definition
from tests.real.lookalike.router import ADDRESS, TIMEOUT_ANNOTATION, Guard, Upstream
from tests.real.lookalike.validator import Validator, create_validator, write_kubeconfig
from tests.unit.made_certificates import Authority

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
NAMESPACE = "lookalike"
MODELS = {"full": "smollm2-135m", "quantized": "smollm2-135m-quantized"}
PROFILE = HERE / "profile.toml"
#: Where OpenShift publishes its authorities, and where OpenShift AI has its registries.
PUBLISHED, REGISTRIES = "openshift-config-managed", "rhoai-model-registries"
REGISTRY = "model-registry"
#: The ServiceAccounts whose tokens the validator may request: the protected model's own, one that may list models but
#: ask nothing, and one that may do neither.
ACCOUNTS = (f"{MODELS['quantized']}-sa", "reader", "default")
DEFINITIONS = (
    "customresourcedefinition/routes.route.openshift.io",
    "customresourcedefinition/modelregistries.modelregistry.opendatahub.io",
)
#: The binding of those who review tokens.
REVIEWER = "lookalike-auth-delegator"
#: The number of the first proxy's address; those before it are the routers'.
FIRST_PROXY = 200
RUN_S = 900
#: Until a benchmark Job of this overlay has completed: a few seconds on an idle machine.
BENCHMARK_S = 120


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

    def run(
        self, address: str, directory: Path, *arguments: str, validator: Validator | None = None, key: str = ""
    ) -> Outcome:
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
        if key:
            environment["VLLM_STAGE_API_KEY"] = key
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
    run_kubectl(cluster, REGISTRIES, "wait", "--for=condition=Available", f"deployment/{REGISTRY}", "--timeout=240s")
    with ExitStack() as proxies:
        yield _publish_stage(cluster, facts, folder, proxies)
    # Other tests share the cluster.
    remove_in_background(cluster, NAMESPACE)
    gone = (f"namespace/{PUBLISHED}", f"namespace/{REGISTRIES}", f"clusterrolebinding/{REVIEWER}", *DEFINITIONS)
    run_kubectl(cluster, "default", "delete", "--wait=false", *gone)


def _publish_stage(cluster: ClusterFacts, facts: StageFacts, folder: Path, proxies: ExitStack) -> RoutedStage:
    """Admit the Routes, guard those of the quantized model and the registry, and give the validator its rights.

    The benchmark Jobs run meanwhile: an owner of the stage has started them, and a validator reads what they left.
    """
    jobs = _start_benchmarks(cluster)
    registry = _address_of(cluster, REGISTRIES, REGISTRY)
    upstreams = {
        role: _admit(cluster, NAMESPACE, model, _address_of(cluster, NAMESPACE, f"{model}-predictor"))
        for role, model in MODELS.items()
    }
    upstreams["minio"] = _admit(cluster, NAMESPACE, "minio", _address_of(cluster, NAMESPACE, "minio"))
    upstreams["registry"] = _admit(cluster, REGISTRIES, f"{REGISTRY}-https", registry)
    for name, guard in _run_guards(cluster, upstreams, folder, proxies).items():
        upstreams[name] = replace(upstreams[name], guard=guard)
    publish_results(cluster, facts, f"http://{registry}", folder / "earlier")
    completed = ("wait", "--for=condition=Complete", *jobs, f"--timeout={BENCHMARK_S}s")
    run_kubectl(cluster, NAMESPACE, *completed, timeout_s=2 * BENCHMARK_S)
    return RoutedStage(cluster, upstreams, create_validator(cluster, NAMESPACE, ACCOUNTS, folder))


def _start_benchmarks(cluster: ClusterFacts) -> list[str]:
    manifests = job_runs.manifests_of(HERE / "overlay", cluster.kubectl, NAMESPACE)
    run_kubectl(cluster, NAMESPACE, "apply", "-f", "-", manifest=yaml.dump_all(manifests))
    return [f"job/{objects.name_of(job)}" for job in render.select_kind(manifests, "Job")]


def _run_guards(
    cluster: ClusterFacts, upstreams: Mapping[str, Upstream], folder: Path, proxies: ExitStack
) -> dict[str, Guard]:
    """Run the proxies as a ServiceAccount that may create reviews, as that of a protected model does."""
    account = ACCOUNTS[0]
    binding = ("--clusterrole=system:auth-delegator", f"--serviceaccount={NAMESPACE}:{account}")
    run_kubectl(cluster, NAMESPACE, "create", "clusterrolebinding", REVIEWER, *binding)
    reviewer = write_kubeconfig(cluster, NAMESPACE, account, folder / "reviewer.kubeconfig")
    (folder / "serving").mkdir()
    authority = Authority(folder / "serving", "openshift-service-serving-signer")
    model = GuardedObject("serving.kserve.io", "inferenceservices", NAMESPACE, MODELS["quantized"])
    guards = {}
    for number, (name, service, guarded) in enumerate(
        (
            ("quantized", f"{MODELS['quantized']}-predictor", model),
            ("registry", REGISTRY, GuardedObject("", "services", REGISTRIES, REGISTRY)),
        ),
        FIRST_PROXY,
    ):
        host = f"{service}.{guarded.namespace}.svc"
        place = ADDRESS.format(number)
        certificate = authority.issue(host, place, name=name)
        proxy = RbacProxy(f"guard-{name}", place, certificate, upstreams[name].address, guarded)
        address = proxies.enter_context(run_rbac_proxy(proxy, reviewer.kubeconfig, folder))
        guards[name] = Guard(address, host, authority.certificate)
    return guards


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
