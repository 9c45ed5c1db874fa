"""Checks of what runs: each finds its fault, and leaves a healthy stage alone."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import health, rollout
from tests.unit.made_objects import (
    claim,
    condition,
    container_status,
    deployment,
    event,
    job,
    pod,
    runtime,
    served_spec,
    service,
)


def serving_pod(name: str = "p", **container: Any) -> Object:
    return pod(name, spec=served_spec(**container))


def test_a_ready_service_of_its_current_generation_is_well() -> None:
    assert health.check_service(service(), runtime(), deployment(), [serving_pod()]) == []
    assert health.check_service(service(), runtime(), None, [serving_pod()]) == [], "Serverless has no Deployment"


def test_service_without_a_ready_condition_is_reported() -> None:
    assert (
        "condition Ready is not reported"
        in health.check_service(service() | {"status": {}}, runtime(), deployment(), [serving_pod()])[0]
    )
    lines = health.check_service(service(ready="False"), runtime(), deployment(), [serving_pod()])
    assert [line.split(":")[0] for line in lines] == [
        "condition PredictorReady is False",
        "condition Ready is False",
    ]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (deployment(generation=3, observed=2), "generation not observed yet"),
        (deployment(updatedReplicas=0), "0 updated"),
        (
            deployment(replicas=2) | {"spec": {"replicas": 1}, "status": {"observedGeneration": 2, "replicas": 2}},
            "2 in all",
        ),
        (deployment(availableReplicas=0), "0 of 1 available"),
    ],
)
def test_rollout_in_progress_is_stale_though_ready(made: Object, expected: str) -> None:
    (line,) = rollout.stale_reasons(service(), runtime(), made, [serving_pod()])
    assert expected in line


def test_a_pod_of_the_old_arguments_is_stale_though_everything_says_ready() -> None:
    old = serving_pod(args=["--port=8080", "--served-model-name=m", "--max-model-len=1024"])
    lines = health.check_service(service(), runtime(), deployment(), [old])
    assert "pod p is of an older generation: argument declared, not live: --max-model-len=2048" in lines


def test_no_ready_pod_and_no_runtime_are_stale() -> None:
    assert rollout.stale_reasons(service(), runtime(), deployment(), [pod(ready=False)]) == ["no pod is Ready"]
    assert rollout.stale_reasons(service(), None, deployment(), []) == ["ServingRuntime vllm does not exist"]


def test_replicas_are_counted_by_ready_pods() -> None:
    assert health.check_replicas(service(), [pod("a"), pod("b", ready=False)]) == []
    assert health.check_replicas(service(), []) == ["expected 1 to 1 Ready pods, got 0"]
    assert health.check_replicas(service(), [pod("a"), pod("b")]) == ["expected 1 to 1 Ready pods, got 2"]
    leaving = pod("old")
    leaving["metadata"]["deletionTimestamp"] = "now"
    assert health.check_replicas(service(), [pod("a"), leaving]) == [
        "pod old of an old revision still exists and holds its resources"
    ]


def test_restarts_are_reported_with_their_reason() -> None:
    assert health.check_pods([pod()]) == []
    assert health.check_pods([]) == ["there is no pod"]
    end = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    (line,) = health.check_pods([pod(statuses=[container_status(restartCount=2, lastState=end)])])
    assert line == "container kserve-container of pod p was restarted 2 times (OOMKilled, exit code 137)"
    assert "pod p is not Ready" in health.check_pods([pod(ready=False)])[0]


@pytest.mark.parametrize(("since", "reported"), [("2026-01-01T00:00:00", True), ("2026-01-01T00:01:00", False)])
def test_a_restart_after_a_time_is_reported(since: str, reported: bool) -> None:
    end = {"terminated": {"reason": "Error", "exitCode": 137, "finishedAt": "2026-01-01T00:00:30Z"}}
    restarted = pod(statuses=[container_status(restartCount=2, lastState=end)])
    since_s = datetime.datetime.fromisoformat(f"{since}+00:00").timestamp()
    lines = health.find_ends_since([pod(), restarted], [], since_s)
    assert len(lines) == int(reported)
    assert all(line.endswith("of pod p was restarted 2 times (Error, exit code 137)") for line in lines)


def test_claims_are_bound_in_their_size() -> None:
    assert health.check_claim(claim(phase="Bound"), claim()) == []
    assert health.check_claim(None, claim()) == ["PVC model-m does not exist"]
    assert health.check_claim(claim(), claim()) == ["PVC model-m: expected phase Bound, got Pending"]
    assert health.check_claim(claim(phase="Bound", size="1Gi"), claim()) == ["PVC model-m: expected 40Gi, got 1Gi"]


def test_pods_that_are_on_no_node_are_placed_nowhere() -> None:
    volume = {"metadata": {"name": "v"}, "spec": {}}
    pending = pod("waits", ready=False, statuses=[], phase="Pending")
    assert health.check_placement([pending], volume, {}) == ["pod waits is on no node: pod Pending"]
    assert health.check_placement([], volume, {}) == ["there is no pod"]
    placed = pod("runs", spec={"nodeName": "n"})
    assert health.check_placement([pending, placed], volume, {"n": {"metadata": {"name": "n"}}}) == []


def test_volume_in_another_zone_is_reported() -> None:
    terms = [{"matchExpressions": [{"key": health.ZONE_LABEL, "operator": "In", "values": ["b"]}]}]
    made = {"metadata": {"name": "v"}, "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}}
    node = {"metadata": {"name": "n", "labels": {health.ZONE_LABEL: "a"}}}
    assert health.check_zones(made, node) == ["persistentvolume v is in zone b, node n is in a"]
    node["metadata"]["labels"][health.ZONE_LABEL] = "b"  # type: ignore[index]
    assert health.check_zones(made, node) == []
    assert health.check_zones({"metadata": {"name": "v"}, "spec": {}}, node) == []


def test_incomplete_job_is_reported() -> None:
    assert health.check_job(job(conditions=[condition("Complete")]), "j") == []
    assert health.check_job(None, "j") == ["job j does not exist"]
    assert health.check_job(job(), "j") == ["job j has not completed: 0 pods active"]
    failed = condition("Failed", reason="BackoffLimitExceeded", message="too often")
    assert health.check_job(job(conditions=[failed]), "j") == ["job j failed: BackoffLimitExceeded: too often"]


MANIFESTS: list[Object] = [
    {"kind": "Secret", "metadata": {"name": "own"}, "stringData": {"a": "${A}"}},
    {"kind": "ServiceAccount", "metadata": {"name": "sa"}, "secrets": [{"name": "s3"}]},
    job(),
    {
        "kind": "Deployment",
        "metadata": {"name": "d"},
        "spec": {
            "template": {
                "spec": {
                    "imagePullSecrets": [{"name": "pull"}],
                    "containers": [
                        {
                            "envFrom": [{"secretRef": {"name": "all"}}],
                            "env": [{"valueFrom": {"secretKeyRef": {"name": "maybe", "key": "k", "optional": True}}}],
                        }
                    ],
                    "volumes": [{"secret": {"secretName": "tls", "items": [{"key": "crt", "path": "x"}]}}],
                }
            }
        },
    },
]


def test_references_to_secrets_are_found_wherever_they_are() -> None:
    found = {(ref.secret, ref.key) for ref in health.secret_references(MANIFESTS)}
    assert found == {
        ("own", "a"),
        ("s3", None),
        ("huggingface-token", "HF_TOKEN"),
        ("pull", None),
        ("all", None),
        ("tls", "crt"),
    }


def test_references_to_missing_secrets_are_reported() -> None:
    live = {"own": ["a"], "s3": [], "huggingface-token": ["TOKEN"], "pull": [".dockerconfigjson"], "tls": ["crt"]}
    assert health.check_secrets(health.secret_references(MANIFESTS), live) == [
        "secret all does not exist (Deployment/d needs it)",
        'secret huggingface-token has no key "HF_TOKEN" (Job/download-m needs it)',
    ]


def test_a_warning_counts_while_its_subject_is_unwell() -> None:
    sick, well = pod("sick", ready=False), pod("well")
    gone = pod("gone")
    done = job(conditions=[condition("Complete")])
    events = [
        event(sick, "Unhealthy", "Readiness probe failed"),
        event(well, "Unhealthy", "Readiness probe failed"),
        event(gone, "BackOff"),
        event(done, "BackoffLimitExceeded"),
        event(sick, "Scheduled", kind="Normal"),
    ]
    assert health.standing_warnings(events, [sick, well, done]) == ["Unhealthy pod/sick (x1): Readiness probe failed"]


def test_a_new_object_of_an_old_name_does_not_inherit_warnings() -> None:
    old, new = pod("p", ready=False), pod("p", ready=False)
    new["metadata"]["uid"] = "uid-new"
    assert health.standing_warnings([event(old, "Unhealthy")], [new]) == []


def test_a_message_has_symptom_lines_and_the_next_command() -> None:
    assert health.message("broken", ["a", "b"], "kubectl get x") == "broken: a\n  b\n  next: kubectl get x"
