"""Create or attach to the run's cluster and its stage: under a lock, once per run."""

from __future__ import annotations

import importlib
import json
import re
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core import processor
from pytest_vllm_stage.core.errors import ConfigError, StageError
from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.session import kept
from pytest_vllm_stage.settings.config import StageConfig
from pytest_vllm_stage.stage.facts import StageFacts

if TYPE_CHECKING:
    from pytest_vllm_stage.engine.environment import EngineEnvironment

#: A machine runs one local cluster at a time: a second run reports which run uses it, and waits so long for it.
BUSY_WAIT_S = 600.0
#: What deploys a stage.
_DEPLOYING = "pytest_vllm_stage.stage.deploy.waves"
#: Commands that need no cluster.
_WITHOUT_CLUSTER = re.compile(r"\bkubectl (kustomize|config)\b|\binstall kubectl\b")
#: Commands about objects outside namespaces.
_CLUSTER_WIDE = re.compile(r"\bkubectl (api-resources|auth|(get|describe) (crd|node|storageclass)s?)\b")


def cluster_of(run: Run) -> ClusterFacts:
    """The run's cluster, created or attached to by the first process that uses it."""
    return ClusterFacts.from_json(_ensure(run, "cluster", lambda: make_cluster(run).to_json()))


def stage_of(run: Run, cluster: ClusterFacts) -> StageFacts:
    """The run's stage on ``cluster``, deployed or attached to by the first process that uses it."""
    # The controller removes the stage with these facts, whichever fixture provided the cluster and the profile.
    run.shared.ensure("cluster", cluster.to_json)
    run.shared.ensure("namespace", lambda: run.config.namespace)
    from pytest_vllm_stage.cluster.authorities import find_ca_file
    from pytest_vllm_stage.stage.reach import forwards

    facts = StageFacts.from_json(_ensure(run, "stage", lambda: make_stage(run, cluster).to_json()))
    return forwards.localise(cluster, facts, lambda: find_ca_file(run, cluster))


def namespace_of(run: Run) -> str:
    """The namespace of the run's stage, as the process that deployed it knew it."""
    return run.shared.get("namespace") or run.config.namespace


def deploys_to(run: Run, cluster: ClusterFacts) -> bool:
    """Whether the run deploys: onto its own cluster, and onto an existing one only with --stage-deploy."""
    return run.config.deploys and (cluster.owned or run.config.flag("deploy"))


def lasting_hint(run: Run, hint: str) -> str:
    """A hint that still works when it is read: a kubectl command may not, once the run has removed what it created."""
    removed = run.config.deploys and not run.config.reuse and run.config.text("keep") == "never"
    if "kubectl" not in hint or not removed or _WITHOUT_CLUSTER.search(hint):
        return hint
    known = run.shared.get("cluster")
    owned = ClusterFacts.from_json(known).owned if known else run.config.creates_cluster
    if not owned and _CLUSTER_WIDE.search(hint):
        return hint  # the namespace is removed, the cluster stays
    folder = run.directory / "diagnostics"
    return (
        f"read {folder}/: objects (*.json), events.txt and logs/ of the stage, which this run removes; "
        "to look at it with kubectl, keep it: --stage-keep=on-failure"
    )


def _ensure(run: Run, name: str, make: Callable[[], str]) -> str:
    """A shared fact; a failure is printed immediately, since pytest shows errors only at the end."""

    def make_and_report() -> str:
        try:
            return make()
        except StageError as error:
            error.hint = lasting_hint(run, error.hint)
            run.journal.say(f"{name}: {error.kind}: {error}")
            raise

    return run.shared.ensure(name, make_and_report)


def make_cluster(run: Run) -> ClusterFacts:
    """Create or attach to the cluster; others call `cluster_of`."""
    if run.config.reuse:
        return _reuse_cluster(run, kept.find(run.config.reuse))
    if run.config.cluster_kind == "local":
        return _make_local_cluster(run)
    if run.config.cluster_kind == "kind":
        return _make_kind_cluster(run)
    return _attach_to_cluster(run)


def _reuse_cluster(run: Run, found: kept.Kept) -> ClusterFacts:
    """The cluster of a kept stage; where no run created it, a run that does more than read needs the rights for it."""
    further = {"publish": run.config.text("publish") == "always", "disrupt": bool(run.config.disruptions)}
    if any(further.values()) and not found.cluster.owned:
        _check_rights(run, found.cluster, [mode for mode, needed in further.items() if needed], found.stage.namespace)
    return found.cluster


def _attach_to_cluster(run: Run) -> ClusterFacts:
    """The existing cluster, after this user's rights were compared with what the run needs."""
    from pytest_vllm_stage.cluster import in_cluster, kubeconfig

    config = run.config
    facts = in_cluster.connect() if config.cluster_kind == "in-cluster" else kubeconfig.connect(config.context or "")
    _check_rights(run, facts, _access_modes(config), config.namespace)
    run.journal.event("versions", "cluster", kubernetes=facts.kubernetes_version)
    return facts


def _check_rights(run: Run, facts: ClusterFacts, modes: Iterable[str], namespace: str) -> None:
    """Compare this user's rights with those of the modes; see `access.check_access`."""
    from pytest_vllm_stage.cluster import access, client

    kube = client.connect_to(facts)
    try:
        for mode in modes:
            access.check_access(kube, mode, namespace, run.journal, run.config.disruptions)
    finally:
        kube.client.close()


def _access_modes(config: StageConfig) -> list[str]:
    """The folders under fixtures/access that hold the rights of a run; those of a deployment include load workers."""
    if config.deploys:
        return ["deploy", *(["disrupt"] if config.disruptions else [])]
    further = {"load": config.load_from == "cluster", "publish": config.publishes}
    return ["read-only", *(mode for mode, needed in further.items() if needed)]


def _make_local_cluster(run: Run) -> ClusterFacts:
    """Build what is missing, then start the one-node Kubernetes with the engine and its weights mounted into it."""
    from pytest_vllm_stage.cluster import local

    journal = run.journal
    with _engine_in_creation(run):
        with journal.phase("step: packages"):
            local.ensure_packages(journal)
        _report_swept(run, local.sweep(journal))
        with journal.phase("step: components"):
            local.components.ensure(journal)
        with journal.phase("step: engine"):
            engine, weights = _engine(run)
            journal.event("versions", "engine", **engine.versions)
    mounts = {"engine": engine.prefix, "python": engine.base_prefix, "weights": weights}
    # While the programs start, this process only waits; the Kubernetes client takes a second to import.
    threading.Thread(target=importlib.import_module, args=[_DEPLOYING], daemon=True).start()
    with journal.phase("step: cluster"):
        facts = local.start(
            run_id=run.run_id,
            lifeline_pid=run.identity.controller_pid,
            mounts=mounts,
            journal=journal,
            wait_s=BUSY_WAIT_S,
        )
    journal.event("versions", "cluster", **{"kubernetes": facts.kubernetes_version, **facts.versions})
    return facts


def _engine_in_creation(run: Run) -> AbstractContextManager[None]:
    """In a first run the engine is downloaded while packages are installed and the cluster's programs are built."""
    from pytest_vllm_stage.cluster.local import components
    from pytest_vllm_stage.engine import ahead

    return nullcontext() if run.config.simulated or components.are_built() else ahead.creating_engine()


def _make_kind_cluster(run: Run) -> ClusterFacts:
    """Create a cluster with kind, and pull into its node what the profile's overlay runs."""
    from pytest_vllm_stage.cluster import kind
    from pytest_vllm_stage.stage import drift
    from pytest_vllm_stage.stage.deploy import render

    journal, overlay = run.journal, run.config.profile.overlay
    _report_swept(run, kind.sweep(journal))
    with journal.phase("step: cluster"):
        facts = kind.start(
            run_id=run.run_id,
            lifeline_pid=run.identity.controller_pid,
            journal=journal,
            find_images=lambda kubectl: drift.images(render.render(overlay, kubectl)).values(),
        )
    journal.event("versions", "cluster", **{"kubernetes": facts.kubernetes_version, **facts.versions})
    return facts


def cluster_module(cluster: ClusterFacts) -> ModuleType:
    """The module that keeps and removes a cluster that a run created: ``cluster.kind`` or ``cluster.local``."""
    return importlib.import_module(f"pytest_vllm_stage.cluster.{cluster.kind}")


def _report_swept(run: Run, lines: list[str]) -> None:
    for line in lines:
        run.journal.event("swept", line)
        run.journal.say(f"removed the leftovers of a killed run: {line}")


def _engine(run: Run) -> tuple[EngineEnvironment, Path]:
    """The engine that the run's pods start, and the folder with one folder of weights per model."""
    if run.config.simulated:
        from pytest_vllm_stage.engine import simulated

        return simulated.ensure(run.journal)
    from pytest_vllm_stage.engine import environment, weights

    engine = environment.ensure(run.journal)
    variants = weights.ensure(run.journal, engine)
    return engine, next(iter(variants.values())).parent


def make_stage(run: Run, cluster: ClusterFacts) -> StageFacts:
    """Deploy or attach to the stage, and record what serves it: a simulated engine, or which kernels."""
    facts = _deploy_or_attach(run, cluster)
    if facts.simulated:
        run.journal.event("simulated", facts.namespace)
        return facts
    if cluster.kind != "local":
        return facts
    kernels = processor.local_kernels()
    if kernels == processor.FLOAT32_KERNELS:
        run.journal.event("no_avx512", facts.namespace)
    return replace(facts, kernels=kernels)


def _deploy_or_attach(run: Run, cluster: ClusterFacts) -> StageFacts:
    from pytest_vllm_stage.stage.deploy import secrets, waves

    config, journal = run.config, run.journal
    if config.reuse:
        return _attach_kept(run)
    if not deploys_to(run, cluster):
        with journal.phase("step: attach"):
            return waves.attach(cluster, config.profile, config.namespace, journal)
    values = secrets.load(config.profile.overlay, config.env_file)
    with journal.phase("step: deploy"):
        return waves.deploy(
            cluster,
            config.profile,
            namespace=config.namespace,
            run_id=run.run_id,
            secrets=values,
            journal=journal,
            diagnostics=run.directory / "diagnostics",
        )


def _attach_kept(run: Run) -> StageFacts:
    """The stage that an earlier run kept, if this run's profile would deploy the same."""
    found = kept.find(run.config.reuse or "latest")
    kept_engine, wanted = found.fingerprint.get("engine", "vllm"), run.config.engine
    if kept_engine != wanted:
        raise ConfigError(
            f"--stage-reuse: run {found.run_id} kept a stage of engine {kept_engine}, and this run is for {wanted}",
            hint=f"validate it as what it is (--stage-engine={kept_engine}), or deploy again (without --stage-reuse)",
        )
    differences = kept.differences(found.fingerprint, fingerprint(run.config, found.cluster.kubectl))
    if differences:
        listing = "\n  ".join(differences)
        raise ConfigError(
            f"--stage-reuse: run {found.run_id} kept another stage than this profile describes:\n  {listing}",
            hint=f"deploy again (without --stage-reuse), or remove the old one: {kept.removal_command(found)}",
        )
    run.journal.event("reused", found.run_id, state=json.loads(found.stage.to_json()))
    return found.stage


def fingerprint(config: StageConfig, kubectl: str) -> dict[str, str]:
    """The configuration of a stage, field by field: engine, profile, and every rendered manifest."""
    from pytest_vllm_stage.stage.deploy import render

    facts = {f"profile.{key}": str(value) for key, value in config.profile.facts().items()}
    facts |= {"profile.namespace": config.namespace, "engine": config.engine}
    return facts | render.flatten(render.render(config.profile.overlay, kubectl))
