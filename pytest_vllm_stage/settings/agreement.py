"""Rejects wrong or contradictory settings before anything is created.

A contradiction is refused wherever its settings come from, except from a profile, whose options are only defaults. A
setting without effect is refused only on the command line: an environment variable or the ini file may hold it for
other runs.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.files import read_text
from pytest_vllm_stage.core.suggestions import describe_unknown
from pytest_vllm_stage.settings import pod
from pytest_vllm_stage.settings.config import SAMPLES, StageConfig
from pytest_vllm_stage.settings.urls import ENDPOINT_ROLE, check_gpu_metrics_url, check_registry_url

_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

_NEEDS_CLUSTER = ("cluster", "context", "deploy", "engine", "reuse", "keep", "namespace")
_NEEDS_STAGE = ("env_file", "publish", "registry_url")
#: Values of --stage-cluster that leave no choice of a context.
_OTHER_CLUSTERS = {"local": "a local one", "kind": "one of kind", "in-cluster": "the pod's own"}
_CHOOSES_TARGET = ("endpoint", "context", "cluster", "deploy", "reuse", "keep")
_MEASURES = ("load_driver", "load_from", "load_seed", "full_duration", "gpu_metrics")


def check_agreement(config: StageConfig) -> None:
    """Refuse wrong and contradictory settings.

    Raises:
        ConfigError: naming both settings by where they were set, and what is valid.
    """
    _check_targets(config)
    _check_engine(config)
    _check_cluster(config)
    _check_reuse(config)
    _check_disruptions(config)
    _check_values(config)
    _check_files(config)
    _check_results(config)
    _check_load(config)


def _refuse(config: StageConfig, name: str, reason: str, others: tuple[str, ...], *, typed: bool = False) -> None:
    """Refuse the first of some other settings that is given, since a setting excludes it for a reason."""
    for other in others:
        if config.is_given(other, typed=typed):
            raise ConfigError(f"{config.source(name)} {reason}: it cannot go with {config.source(other)}")


def _check_targets(config: StageConfig) -> None:
    if config.endpoint:
        _refuse(config, "endpoint", "validates a server without a cluster", _NEEDS_CLUSTER)
        _refuse(config, "endpoint", "validates a server without a stage", _NEEDS_STAGE, typed=True)
        _check_roles(config)
    elif config.is_given("model"):
        raise ConfigError(
            f"{config.source('model')} goes with --stage-endpoint; a stage's models are named by its profile"
        )


def _check_roles(config: StageConfig) -> None:
    """Servers given by role belong to the profile's models."""
    if tuple(config.endpoints) == (ENDPOINT_ROLE,):
        return
    for role in config.endpoints:
        if role not in config.profile.models:
            problem = describe_unknown(role, config.profile.models, f"role {role!r}")
            raise ConfigError(f"{config.source('endpoint')}: {problem}")
    _refuse(config, "endpoint", "names each server's model by its role", ("model",))


def _check_engine(config: StageConfig) -> None:
    if config.simulated and config.text("publish") == "always":
        _refuse(config, "engine", "sim has results that are never published", ("publish",))
    if not config.simulated or (config.cluster_kind == "local" and not config.endpoint):
        return
    other = next(config.source(name) for name in ("endpoint", "context", "cluster") if config.settings[name].value)
    raise ConfigError(
        f"{config.source('engine')}: engine sim needs the cluster that the run itself creates by "
        f"--stage-cluster=local: it cannot go with {other}"
    )


def _check_cluster(config: StageConfig) -> None:
    wanted = _OTHER_CLUSTERS.get(config.text("cluster"))
    if wanted and config.context:
        raise ConfigError(
            f"{config.source('context')} names a cluster, but {config.source('cluster')} asks for {wanted}"
        )
    if config.text("cluster") == "kubeconfig" and not config.context and not config.reuse:
        raise ConfigError(
            f"{config.source('cluster')} is kubeconfig: --stage-context must name the context; none is used unnamed"
        )
    deploys = config.flag("deploy") and config.is_given("deploy")
    unnamed = not config.context and config.cluster_kind != "in-cluster"
    if (
        deploys
        and unnamed
        and not config.reuse
        and not config.results
        and config.text("cluster") not in ("local", "kind")
    ):
        raise ConfigError(
            f"{config.source('deploy')} deploys on an existing cluster, and none is named: name it with "
            "--stage-context, or leave it out to deploy on a local cluster"
        )
    if config.text("cluster") == "in-cluster" and not config.results and not pod.runs_in_pod():
        raise ConfigError(
            f"{config.source('cluster')} is in-cluster: expected to run in a pod with the token of its ServiceAccount, "
            f"got no {pod.SERVICE_ACCOUNT / 'token'}",
            hint="automountServiceAccountToken: true in the pod, or name a cluster: --stage-context",
        )
    if not config.creates_cluster and not (config.deploys or config.reuse or config.results or config.endpoint):
        _refuse_changes(config)


def _refuse_changes(config: StageConfig) -> None:
    """Refuse settings of a deployment on a cluster that is only read."""
    chosen = next((config.source(name) for name in ("context", "cluster") if config.is_given(name)), None)
    reason = f"{chosen or 'the cluster of the pod'} is only read without --stage-deploy"
    for name, typed in (("keep", False), ("env_file", True)):
        if config.is_given(name, typed=typed) and not (name == "keep" and config.keep == "never"):
            raise ConfigError(f"{reason}: it cannot go with {config.source(name)}")


def _check_reuse(config: StageConfig) -> None:
    if config.reuse:
        _refuse(config, "reuse", "deletes nothing", ("keep",))
        _refuse(config, "reuse", "attaches to a stage that is deployed, on the cluster it names", ("deploy", "context"))
        _refuse(config, "reuse", "attaches to a stage that has its secrets", ("env_file",), typed=True)


def _check_disruptions(config: StageConfig) -> None:
    """Refuse disruptions of a stage that is only read, or of a cluster that was neither created here nor named."""
    if not config.disruptions:
        return
    source, named = config.source("disrupt"), config.get("disrupt_cluster")
    for name in ("endpoint", "results"):
        if config.settings[name].value:
            raise ConfigError(f"{source} changes a stage: it cannot go with {config.source(name)}")
    if not (config.deploys or config.reuse):
        chosen = next((config.source(name) for name in ("context", "cluster") if config.is_given(name)), None)
        reason = f"{chosen or 'the cluster of the pod'} is only read without --stage-deploy"
        raise ConfigError(f"{reason}: it cannot go with {source}")
    if config.cluster_kind == "local" and not config.reuse:
        return
    expected = config.reuse or config.context or config.cluster_kind
    if named != expected:
        got = f"got {named!r}" if named else "it is not set"
        raise ConfigError(
            f"{source} changes a cluster that this run does not create: expected --stage-disrupt-cluster={expected}, "
            f"which names it, {got}"
        )


def _check_values(config: StageConfig) -> None:
    if config.registry_url:
        check_registry_url(config.registry_url, config.source("registry_url"))
    if config.gpu_metrics:
        check_gpu_metrics_url(config.gpu_metrics, config.source("gpu_metrics"))
    if config.keep_reports == 0:
        raise ConfigError(f"{config.source('keep_reports')}: expected a whole number from 1, got 0")
    if config.keep_reports:
        _refuse(config, "keep_reports", "is about the folder reports/", ("run_dir",), typed=True)
    if config.is_given("keep_reports", typed=True) and not config.reports:
        _refuse(config, "keep_reports", "removes old runs when the reports are made", ("report",), typed=True)
    if not _NAMESPACE.fullmatch(config.namespace):
        raise ConfigError(
            f"{config.source('namespace')}: {config.namespace!r} is not a namespace; "
            "valid: lower-case letters, digits and '-', at most 63"
        )


def _check_files(config: StageConfig) -> None:
    authorities = Path(config.ca_file) if config.ca_file else None
    for name, path in (("ca_file", authorities), ("env_file", config.env_file)):
        if path and not path.is_file():
            raise ConfigError(f"{config.source(name)}: there is no file {str(path)!r}")
    if authorities:
        _check_certificates(authorities, config.source("ca_file"))
    if config.trusts_cluster and config.endpoint:
        raise ConfigError(
            f"{config.source('ca_file')} is cluster, and {config.source('endpoint')} validates a server without a "
            "cluster: name the PEM file of its authorities"
        )


def _check_certificates(path: Path, source: str) -> None:
    read_text(path, f"{source}:")
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError):
        mark = path.read_bytes()[:2] in (b"\xef\xbb", b"\xff\xfe", b"\xfe\xff")
        why = "it begins with a byte order mark: save it as UTF-8 without one" if mark else "expected BEGIN CERTIFICATE"
        raise ConfigError(f"{source}: {str(path)!r} is not a PEM file of certificates: {why}") from None


def _check_results(config: StageConfig) -> None:
    results = config.results
    if not results:
        return
    source = config.source("results")
    if not results.is_dir():
        raise ConfigError(f"{source}: there is no folder {str(results)!r}")
    if not [*results.glob(f"*{SAMPLES}"), *results.glob(f"benchmarks/*{SAMPLES}")]:
        raise ConfigError(f"{source}: {str(results)!r} has no samples (*{SAMPLES}), nor has its benchmarks folder")
    _refuse(config, "results", "measures nothing", (*_CHOOSES_TARGET, "find_capacity", "baselines"))
    _refuse(config, "results", "measures nothing", _MEASURES, typed=True)
    _refuse(config, "results", "judges saved samples alone", _NEEDS_STAGE, typed=True)


def _check_load(config: StageConfig) -> None:
    """Load from the cluster is sent by this project's own driver, in pods of a cluster that the run knows."""
    if config.load_from == "host":
        return
    _refuse(config, "load_from", "sends the load from pods of the stage's cluster", ("endpoint",))
    if config.load_driver != "builtin":
        _refuse(config, "load_from", "is carried out by the builtin driver", ("load_driver",))
