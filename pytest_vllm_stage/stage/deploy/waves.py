"""Deploy the stage wave by wave, or attach to an existing one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import ConfigError, StageFailure
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.settings import pod
from pytest_vllm_stage.settings.profile import Profile
from pytest_vllm_stage.stage import client, drift, objects
from pytest_vllm_stage.stage.deploy import addresses, render
from pytest_vllm_stage.stage.deploy import secrets as secret_values
from pytest_vllm_stage.stage.deploy.apply import Ownership, apply
from pytest_vllm_stage.stage.facts import SIMULATED_LABEL, StageFacts, TargetFacts
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import conditions, diagnose
from pytest_vllm_stage.stage.observe.reader import Condition, StageReader
from pytest_vllm_stage.stage.observe.wait import wait_for_all
from pytest_vllm_stage.stage.protection import is_protected
from pytest_vllm_stage.stage.reach import forwards
from pytest_vllm_stage.stage.reach.address import NoAddress

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient


def deploy(
    cluster: ClusterFacts,
    profile: Profile,
    *,
    namespace: str,
    run_id: str,
    secrets: secret_values.Values,
    journal: Journal,
    diagnostics: Path,
) -> StageFacts:
    """Deploy the profile's overlay and wait until its models answer.

    Args:
        cluster: Where.
        profile: What, and how long each wait may take.
        namespace: The stage's namespace; it must not exist.
        run_id: Goes onto everything as a label.
        secrets: What `stage.secrets.load` returned.
        journal: Records the duration of each wave and wait.
        diagnostics: Folder for objects, events and logs when it fails.

    Raises:
        ConfigError: the manifests, the secrets or existing objects do not allow it; nothing was created
            that the run's label does not find.
        EnvironmentUnusable: the cluster cannot run it.
        StageFailure: the stage does not become ready; the first line names the cause.
    """
    manifests = render.in_namespace(render.render(profile.overlay, cluster.kubectl), namespace)
    _check_roles(profile, manifests)
    values = secret_values.complete(manifests, secrets, generate=cluster.owned)
    with client.connection(cluster, namespace) as kube:
        try:
            _apply_waves(
                StageReader(kube, cluster, namespace), manifests, profile, Ownership.for_run(run_id), values, journal
            )
            services = _services(kube, cluster, namespace, profile)
            targets = _targets(kube, cluster, namespace, services, journal)
            _await_answers(targets, profile.waits_s["first_answer_s"], journal)
        except StageFailure:
            diagnose.collect(cluster, namespace, diagnostics)
            raise
        minio_url = _find_minio_url(kube, cluster, namespace, journal)
    return StageFacts(
        namespace,
        run_id,
        owned=True,
        targets=targets,
        minio_url=minio_url,
        deployed_at=time.time(),
        simulated=is_simulated(services),
    )


def _apply_waves(
    reader: StageReader,
    manifests: list[Object],
    profile: Profile,
    ownership: Ownership,
    values: Mapping[str, Secret],
    journal: Journal,
) -> None:
    for wave in render.waves(manifests):
        kinds = ", ".join(sorted({manifest["kind"] for manifest in wave}))
        with journal.phase(f"deploy {kinds}", objects=[objects.reference(manifest) for manifest in wave]):
            apply(reader.kube, wave, reader.namespace, ownership, values)
            wait_for_all(reader, conditions_of(wave, profile.waits_s), journal)


def attach(cluster: ClusterFacts, profile: Profile, namespace: str, journal: Journal) -> StageFacts:
    """Attach to an existing stage without changing anything; the suites judge whether it is healthy.

    Raises:
        StageFailure: a model of the profile has no InferenceService in the namespace.
        EnvironmentUnusable: the cluster or its servers are not reachable from here.
    """
    with client.connection(cluster, namespace) as kube:
        services = _services(kube, cluster, namespace, profile)
        targets = _reachable_targets(kube, cluster, namespace, services, journal)
        minio_url = _find_minio_url(kube, cluster, namespace, journal)
    facts = StageFacts(namespace, "", False, targets, minio_url, simulated=is_simulated(services))
    journal.event("attached", namespace, targets=[target.base_url or target.unreachable for target in facts.targets])
    return facts


def _check_roles(profile: Profile, manifests: list[Object]) -> None:
    there = [objects.name_of(manifest) for manifest in render.select_kind(manifests, "InferenceService")]
    for role, model in profile.models.items():
        if model.inference_service not in there:
            raise ConfigError(
                f"profile {profile.name}: models.{role}.inference_service: {model.inference_service} is not in overlay "
                f"{profile.overlay.name}; valid: {', '.join(there) or 'none'}"
            )


def conditions_of(wave: Sequence[Object], waits_s: Mapping[str, float]) -> list[Condition]:
    """What to wait for before the next wave is applied."""
    makers: dict[str, tuple[Callable[[str, float], Condition], str]] = {
        "Namespace": (conditions.NamespaceActive, "namespace_s"),
        "PersistentVolumeClaim": (conditions.ClaimBound, "persistent_volume_claim_s"),
        "Deployment": (conditions.DeploymentAvailable, "minio_s"),
        "Job": (conditions.JobComplete, "model_download_s"),
        "InferenceService": (conditions.InferenceServiceReady, "inference_service_s"),
    }
    return [
        makers[manifest["kind"]][0](objects.name_of(manifest), waits_s[makers[manifest["kind"]][1]])
        for manifest in wave
        if manifest["kind"] in makers
    ]


def _services(kube: DynamicClient, cluster: ClusterFacts, namespace: str, profile: Profile) -> dict[str, Object]:
    """Role to the live InferenceService."""
    found = {}
    for role, model in profile.models.items():
        service = objects.get(kube, "InferenceService", model.inference_service, namespace)
        if service is None:
            raise StageFailure(
                f"inferenceservice/{model.inference_service} (role {role}) does not exist in namespace {namespace}",
                hint=f"{cluster.kubectl_for(namespace)} get inferenceservices; {_namespace_advice(cluster, namespace)}",
            )
        found[role] = service
    return found


def _namespace_advice(cluster: ClusterFacts, namespace: str) -> str:
    own = pod.read_pod_namespace() if cluster.in_cluster else None
    if own and own != namespace:
        return f"this pod is in namespace {own}: for a stage there, --stage-namespace={own}"
    return "is --stage-namespace right?"


def is_simulated(services: Mapping[str, Object]) -> bool:
    """Whether a model is labelled as simulated; one is enough, since a run's numbers are compared with each other."""
    labels = [service["metadata"].get("labels") or {} for service in services.values()]
    return any(found.get(SIMULATED_LABEL) == "true" for found in labels)


def _targets(
    kube: DynamicClient, cluster: ClusterFacts, namespace: str, services: Mapping[str, Object], journal: Journal
) -> tuple[TargetFacts, ...]:
    return tuple(_target(kube, cluster, namespace, role, service, journal) for role, service in services.items())


def _reachable_targets(
    kube: DynamicClient, cluster: ClusterFacts, namespace: str, services: Mapping[str, Object], journal: Journal
) -> tuple[TargetFacts, ...]:
    """The targets of an existing stage: the checks report a broken model, and no request is sent to it."""
    found = []
    for role, service in services.items():
        try:
            found.append(_target(kube, cluster, namespace, role, service, journal))
        except StageFailure as error:
            found.append(TargetFacts(role, objects.name_of(service), "", unreachable=error.message.splitlines()[0]))
    return tuple(found)


def _target(
    kube: DynamicClient, cluster: ClusterFacts, namespace: str, role: str, service: Object, journal: Journal
) -> TargetFacts:
    runtime = objects.get(kube, "ServingRuntime", drift.runtime_name(service), namespace)
    args = drift.demand(service, runtime).args if runtime else ()
    name = objects.name_of(service)
    address = addresses.find_model_address(kube, cluster, namespace, service)
    journal.event("address", name, **address.to_record())
    if isinstance(address, NoAddress):
        raise addresses.judge_unreachable(cluster, namespace, service, address)
    return TargetFacts(
        role,
        name,
        address.url,
        max_model_len(args),
        max_num_seqs=max_num_seqs(args),
        protected=is_protected(service),
    )


def _find_minio_url(kube: DynamicClient, cluster: ClusterFacts, namespace: str, journal: Journal) -> str | None:
    """Root URL of MinIO's S3 API; None where the stage has none that is reachable from here."""
    address = addresses.find_minio_address(kube, cluster, namespace)
    journal.event("address", addresses.MINIO, **address.to_record())
    return address.url or None


def max_model_len(args: Sequence[str]) -> int | None:
    """The context length that serving arguments declare; the last one where it is given twice."""
    return _find_number("--max-model-len", args)


def max_num_seqs(args: Sequence[str]) -> int | None:
    """The batch limit that serving arguments declare; the last one where it is given twice."""
    return _find_number("--max-num-seqs", args)


def _find_number(option: str, args: Sequence[str]) -> int | None:
    # vLLM takes underscores for hyphens, and a shell's whole command line may be one argument.
    name = option.removeprefix("--").replace("-", "[-_]")
    match = re.findall(rf"(?:^|\s)--{name}(?:=|\s+)(\d+)", " ".join(args))
    return int(match[-1]) if match else None


def _await_answers(targets: Sequence[TargetFacts], timeout_s: float, journal: Journal) -> None:
    """Wait for accepted connections: the API server reports Ready before every Service rule is in place."""
    for target in targets:
        if forwards.is_forward(target.base_url):
            continue  # it was chosen since a connection through it was open
        wait_until(
            f"connection to {target.base_url}",
            partial(_observe_connection, target.base_url),
            timeout_s=timeout_s,
            journal=journal,
            interval_s=0.2,
            hint=f"curl -i {target.base_url}/health",
        )


def _observe_connection(url: str) -> Observation:
    accepted = addresses.answers(url)
    return Observation(accepted, "accepted" if accepted else "refused")
