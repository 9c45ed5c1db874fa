"""Commands in hints: kept where they will still work, replaced where the run removes what they are about."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.run.context import Run, RunIdentity
from pytest_vllm_stage.session.lifecycle import lasting_hint
from pytest_vllm_stage.settings.resolver import resolve_settings

LOCAL = ClusterFacts("local", "/k", "c", "v1", "kubectl", True, True, "/state")
EXISTING = ClusterFacts("kubeconfig", "/k", "c", "v1", "kubectl", False, False)
PODS = LOCAL.kubectl_for("small") + " get pods,events"
DEPLOY = {"context": "c", "deploy": "true"}


def run_of(folder: Path, cluster: ClusterFacts | None, **cli: str) -> Run:
    (folder / "overlay").mkdir()
    (folder / "overlay" / "kustomization.yaml").write_text("resources: []\n")
    profile = 'name = "small"\noverlay = "overlay"\nnamespace = "small"\n[models.full]\ninference_service = "f"\n'
    (folder / "small.toml").write_text(profile)
    given = {"profile": "small.toml", **cli}
    config = resolve_settings(given.get, {}, lambda _name: None, folder)
    run = Run(RunIdentity("r", str(folder / "run"), 1), lambda: config, lambda _line: None)
    if cluster:
        run.shared.ensure("cluster", cluster.to_json)
    return run


@pytest.mark.parametrize(
    ("cluster", "cli", "hint", "lasts"),
    [
        (LOCAL, {}, PODS, False),
        (LOCAL, {}, "kubectl describe node", False),
        (LOCAL, {}, "/cache/kubectl kustomize fixtures/overlays/local", True),
        (LOCAL, {"keep": "on-failure"}, PODS, True),
        (None, {}, "kubectl logs job/download", False),
        (None, {"context": "c"}, "install kubectl", True),
        (EXISTING, DEPLOY, PODS, False),
        (EXISTING, DEPLOY, "kubectl auth can-i --list", True),
        (
            EXISTING,
            DEPLOY,
            "an administrator runs: kubectl apply -f s.yaml && kubectl create c | kubectl auth reconcile -f -",
            True,
        ),
        (EXISTING, DEPLOY, "kubectl get crd | grep serving.kserve.io", True),
        (EXISTING, {"context": "c"}, PODS, True),
        (LOCAL, {}, "apt-get install containerd", True),
    ],
)
def test_a_command_is_replaced_only_where_its_object_is_removed(
    tmp_path: Path, cluster: ClusterFacts | None, cli: dict[str, str], hint: str, lasts: bool
) -> None:
    shown = lasting_hint(run_of(tmp_path, cluster, **cli), hint)
    assert shown == hint if lasts else shown.startswith(f"read {tmp_path}/run/diagnostics/: "), shown
