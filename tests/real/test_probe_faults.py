"""Probes on a wrong path on a real local stage: the deployment ends by its cause, a later restart names the probe.

The engine that is restarted has logged a fatal error before, as vLLM does: the restart names it too.
"""

from __future__ import annotations

import datetime
import logging
import os
from pathlib import Path

import pytest

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import WaitFailed
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.stage import client, objects
from pytest_vllm_stage.stage.observe import health
from pytest_vllm_stage.stage.observe.reader import StageReader
from tests.real.drift_faults import MODEL
from tests.real.live_stage import SILENT, deploy, remove_in_background

pytestmark = pytest.mark.real

LOG = logging.getLogger(__name__)
NAMESPACE = "probes"
OTHER = f"{MODEL}-quantized"
OVERLAY = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - {base}
patches:
  - target: {{kind: InferenceService, name: {model}}}
    patch: |
      - op: add
        path: /spec/predictor/model/readinessProbe
        value: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1, timeoutSeconds: 5}}
"""
LIVENESS = {
    "httpGet": {"path": "/livez", "port": 8080},
    "initialDelaySeconds": 1,
    "periodSeconds": 1,
    "timeoutSeconds": 5,
    "failureThreshold": 1,
}
#: What the other model's engine logs when it starts.
DYING = """
echo '(EngineCore pid=9) ERROR 01-02 03:04:05 [core.py:1512] EngineCore encountered a fatal error.'
echo '(EngineCore pid=9) ERROR 01-02 03:04:05 [core.py:1512] RuntimeError: CPU Generator does not use offset'
"""


def test_probes_on_a_wrong_path_are_named(simulated_cluster: ClusterFacts, tmp_path: Path) -> None:
    base = os.path.relpath((fixtures_dir() / "overlays" / "local-sim").resolve(), tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(OVERLAY.format(base=base, model=MODEL))
    with client.connection(simulated_cluster, NAMESPACE) as kube:
        with pytest.raises(WaitFailed) as failed:
            deploy(simulated_cluster, tmp_path, NAMESPACE, {"full": MODEL, "quantized": OTHER}, tmp_path)
        reader = StageReader(kube, simulated_cluster, NAMESPACE)
        headline = failed.value.message.splitlines()[0]
        LOG.info("%.0f s after the InferenceService was created: %s", _age_s(reader), headline)
        runtime = reader.get("ServingRuntime", "vllm")
        assert runtime
        shell, option, script, *rest = runtime["spec"]["containers"][0]["command"]
        model = {"livenessProbe": LIVENESS, "command": [shell, option, DYING + script, *rest]}
        patch = {"spec": {"predictor": {"model": model}}}
        objects.patch(kube, "InferenceService", OTHER, NAMESPACE, patch)
        lines = _await_restart(reader)
    remove_in_background(simulated_cluster, NAMESPACE)
    assert f"inferenceservice/{MODEL} cannot become Ready: readiness probe GET :8080/healthz answers 404" in headline
    LOG.info("%s", lines[-1])
    assert lines[-1].startswith("engine died at 03:04:05: the prompt of a seeded request was computed in parts")
    assert "liveness probe GET :8080/livez restarts container kserve-container" in lines[-1]


def _age_s(reader: StageReader) -> float:
    """Seconds since the InferenceService was created."""
    service = reader.get("InferenceService", MODEL)
    assert service
    created = datetime.datetime.fromisoformat(service["metadata"]["creationTimestamp"].replace("Z", "+00:00"))
    return (datetime.datetime.now(datetime.UTC) - created).total_seconds()


def _await_restart(reader: StageReader) -> list[str]:
    """The lines of the check of pods, once the kubelet has restarted the other model's container.

    Between two instances the kubelet has no log of the previous one.
    """
    lines: list[str] = []

    def look() -> Observation:
        pods = reader.listed("Pod", {"serving.kserve.io/inferenceservice": OTHER})
        found = health.check_pods(pods, reader.listed("Event"), reader.read_ended_log)
        lines[:] = [line for line in found if "was restarted" in line]
        return Observation(any("engine died" in line for line in lines), "; ".join(lines) or "no restart")

    wait_until("restart by the liveness probe", look, timeout_s=180, journal=SILENT)
    return lines
