"""A cluster that is there, named by a context of the user's kubeconfig."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable

KUBECTL_TIMEOUT_S = 30


def connect(context: str) -> ClusterFacts:
    """The cluster behind a context, after seeing that its API server answers.

    Raises:
        ConfigError: there is no kubeconfig, or no such context in it.
        EnvironmentUnusable: kubectl is missing, or the API server does not answer.
    """
    kubectl = shutil.which("kubectl") or shutil.which("oc")
    if kubectl is None:
        raise EnvironmentUnusable("neither kubectl nor oc is on the PATH", hint="install kubectl")
    path = _kubeconfig_of(context, kubectl)
    command = [kubectl, f"--kubeconfig={path}", f"--context={context}", "version", "--output=json"]
    done = _run([*command, "--request-timeout=15s"])
    version = json.loads(done.stdout or "{}").get("serverVersion", {}) if done.returncode == 0 else {}
    if not version:
        reason = done.stderr.strip().splitlines()[-1:] or ["no answer"]
        raise EnvironmentUnusable(
            f"the cluster of context {context} does not answer: {reason[0]}", hint=" ".join(command)
        )
    return ClusterFacts(
        kind="kubeconfig",
        kubeconfig=str(path),
        context=context,
        kubernetes_version=version["gitVersion"],
        kubectl=kubectl,
        reaches_services=False,
        owned=False,
    )


def _kubeconfig_of(context: str, kubectl: str) -> Path:
    """The file that holds the context: one of ``$KUBECONFIG``, else the user's own."""
    configured = os.environ.get("KUBECONFIG", "")
    paths = [Path(entry) for entry in configured.split(os.pathsep) if entry] or [Path.home() / ".kube" / "config"]
    known: list[str] = []
    for path in filter(Path.is_file, paths):
        names = _run([kubectl, f"--kubeconfig={path}", "config", "get-contexts", "--output=name"]).stdout.split()
        if context in names:
            return path.resolve()
        known += names
    places = ", ".join(map(str, paths))
    raise ConfigError(f"--stage-context={context}: no such context in {places}; valid: {', '.join(known) or 'none'}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=KUBECTL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentUnusable(f"{command[0]} does not run: {error}") from None
