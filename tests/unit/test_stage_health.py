"""Checks of what runs: each finds its fault, and leaves a healthy stage alone."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from pytest_vllm_stage.checks.stage import members
from pytest_vllm_stage.checks.stage.autoscalers import check_autoscalers
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


def test_pod_that_an_autoscaler_removes_is_of_no_old_revision() -> None:
    staying, leaving = (pod(name, labels={"pod-template-hash": "a"}) for name in ("a", "b"))
    leaving["metadata"]["deletionTimestamp"] = "now"
    assert health.check_replicas(service(), [staying, leaving]) == []
    assert health.check_pods([staying, pod("b", ready=False) | {"metadata": leaving["metadata"]}]) == []
    leaving["metadata"]["labels"] = {"pod-template-hash": "b"}
    assert len(health.check_replicas(service(), [staying, leaving])) == 1


def test_replicas_without_a_maximum_are_unlimited_in_serverless_mode() -> None:
    made = service()
    made["metadata"]["annotations"] = {"serving.kserve.io/deploymentMode": "Serverless"}
    made["spec"]["predictor"].pop("maxReplicas", None)
    assert health.check_replicas(made, [pod("a"), pod("b")]) == []
    assert health.check_replicas(made, []) == ["expected 1 or more Ready pods, got 0"]


def test_restarts_are_reported_with_their_reason() -> None:
    assert health.check_pods([pod()]) == []
    assert health.check_pods([]) == ["there is no pod"]
    end = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    (line,) = health.check_pods([pod(statuses=[container_status(restartCount=2, lastState=end)])])
    assert line == "container kserve-container of pod p was restarted 2 times (OOMKilled, exit code 137)"
    assert "pod p is not Ready" in health.check_pods([pod(ready=False)])[0]


@pytest.mark.parametrize(
    ("days", "ended_days_ago", "restarts", "reported"),
    [(30, 20, 1, False), (30, 2, 4, False), (30, 0.5, 1, True), (3, 2, 1, True), (30, 2, 5, True)],
    ids=["one, weeks ago", "once a week", "today", "in a young pod", "more than once a week"],
)
def test_rare_restarts_of_long_ago_are_history(
    days: float, ended_days_ago: float, restarts: int, reported: bool
) -> None:
    now, day = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC), datetime.timedelta(days=1)
    end = {"terminated": {"reason": "Unknown", "exitCode": 255, "finishedAt": f"{now - ended_days_ago * day:%FT%TZ}"}}
    found = pod(statuses=[container_status(restartCount=restarts, lastState=end)])
    found["metadata"]["creationTimestamp"] = f"{now - days * day:%FT%TZ}"
    assert bool(health.check_pods([found], now=now)) is reported
    assert health.check_pods([found]), "without a time every restart counts"


@pytest.mark.parametrize(("hours", "reported"), [(2, True), (30, False)])
def test_pod_that_was_evicted_long_ago_is_history(hours: int, reported: bool) -> None:
    now = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
    evicted = pod("old", ready=False, statuses=[], reason="Evicted", message="The node was low on memory.")
    evicted["status"]["phase"] = "Failed"
    since = f"{now - datetime.timedelta(hours=hours):%FT%TZ}"
    evicted["status"]["conditions"] = [condition("Ready", "False") | {"lastTransitionTime": since}]
    assert bool(health.check_pods([pod(), evicted], now=now)) is reported
    assert health.check_pods([pod(), evicted])


@pytest.mark.parametrize(("since", "reported"), [("2026-01-01T00:00:00", True), ("2026-01-01T00:01:00", False)])
def test_a_restart_after_a_time_is_reported(since: str, reported: bool) -> None:
    end = {"terminated": {"reason": "Error", "exitCode": 137, "finishedAt": "2026-01-01T00:00:30Z"}}
    restarted = pod(statuses=[container_status(restartCount=2, lastState=end)])
    since_s = datetime.datetime.fromisoformat(f"{since}+00:00").timestamp()
    lines = health.find_ends_since([pod(), restarted], [], since_s)
    assert len(lines) == int(reported)
    assert all(line.endswith("of pod p was restarted 2 times (Error, exit code 137)") for line in lines)


def with_revisions(created: str, ready: str, *traffic: tuple[str, int]) -> Object:
    made = service()
    shares = [{"revisionName": name, "percent": percent} for name, percent in traffic]
    made["status"]["components"] = {
        "predictor": {"latestCreatedRevision": created, "latestReadyRevision": ready, "traffic": shares}
    }
    return made


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (with_revisions("m-2", "m-2", ("m-2", 100)), []),
        (with_revisions("m-2", "m-2", ("m-2", 100), ("m-1", 0)), []),
        (with_revisions("1", ""), []),  # in Standard mode it is the Deployment's
        (with_revisions("m-2", "m-1", ("m-1", 100)), ["revision m-2 does not become Ready: m-1 answers"]),
        (
            with_revisions("m-2", "m-2", ("m-1", 90), ("m-2", 10)),
            ["2 revisions answer: m-1 (90 %), m-2 (10 %): what is measured is a mixture of them"],
        ),
    ],
)
def test_the_newest_revision_alone_answers(made: Object, expected: list[str]) -> None:
    assert health.check_service(made, runtime(), None, [serving_pod()]) == expected


def test_pods_that_a_node_removed_are_named_with_the_reason() -> None:
    message = "The node was low on resource: ephemeral-storage."
    evicted = pod("old", ready=False, statuses=[], phase="Failed", reason="Evicted", message=message)
    assert health.check_pods([evicted, pod()]) == [f"pod old was evicted: {message}"]


def test_the_container_that_is_not_ready_is_named() -> None:
    containers = [{"name": "kserve-container"}, {"name": "istio-proxy"}]
    statuses = [container_status(), container_status("istio-proxy", ready=False)]
    (line,) = health.check_pods([pod(ready=False, statuses=statuses, spec={"containers": containers})])
    assert line == "pod p is not Ready: pod Running (istio-proxy not Ready)"


NOW = datetime.datetime(2026, 1, 1, 1, tzinfo=datetime.UTC)
NO_METRICS = {"reason": "FailedGetResourceMetric", "message": "no metrics returned from resource metrics API"}


def autoscaler(most: int = 3, since: str = "2026-01-01T00:00:00Z", **entry: str) -> Object:
    found = {"type": "ScalingActive", "status": "False", "lastTransitionTime": since, **NO_METRICS, **entry}
    spec = {"scaleTargetRef": {"name": "m-predictor"}, "minReplicas": 1, "maxReplicas": most}
    made: Object = {"kind": "HorizontalPodAutoscaler", "metadata": {"name": "m-predictor"}, "spec": spec}
    return made | {"status": {"conditions": [found]}}


def test_an_autoscaler_without_metrics_is_reported() -> None:
    (line,) = check_autoscalers([autoscaler()], "m", NOW)
    assert line == (
        "horizontalpodautoscaler/m-predictor cannot scale m-predictor between 1 and 3 replicas: "
        "FailedGetResourceMetric: no metrics returned from resource metrics API"
    )
    keda = autoscaler(type="Ready", reason="ScaledObjectCheckFailed")
    del keda["status"]["conditions"][0]["lastTransitionTime"]
    assert "ScaledObjectCheckFailed" in check_autoscalers([keda], "m", NOW)[0]


@pytest.mark.parametrize(
    "made",
    [
        autoscaler(most=1),  # KServe makes one for a single replica too, and a cluster without metrics is enough for it
        autoscaler(since="2026-01-01T00:59:00Z"),
        autoscaler(reason="ScalingDisabled"),
        autoscaler(status="True"),
        autoscaler(type="ScalingLimited"),
        autoscaler() | {"status": {}},
    ],
)
def test_an_autoscaler_that_is_new_or_works_or_has_no_range_is_not_reported(made: Object) -> None:
    assert check_autoscalers([made], "m", NOW) == []
    assert check_autoscalers([autoscaler()], "n", NOW) == [], "it is another model's"


def test_a_claim_whose_enlargement_is_pending_says_so() -> None:
    small = claim(phase="Bound", size="20Gi")
    small["status"]["conditions"] = [
        condition(
            "FileSystemResizePending", message="Waiting for user to (re-)start a pod to finish file system resize"
        )
    ]
    (line,) = health.check_claim(small, claim())
    assert line.startswith(
        "PVC model-m: expected 40Gi, got 20Gi (FileSystemResizePending: Waiting for user to (re-)start"
    )


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


def test_a_failed_pod_whose_owner_is_healthy_has_no_standing_warning() -> None:
    done, retried = job(conditions=[condition("Complete")]), pod("first-attempt", ready=False)
    retried["metadata"]["ownerReferences"] = [{"kind": "Job", "uid": done["metadata"]["uid"]}]
    retried["status"]["phase"] = "Failed"
    events = [event(retried, "Evicted")]
    assert health.standing_warnings(events, [retried, done]) == []
    failed = job(conditions=[condition("Failed")])
    assert health.standing_warnings(events, [retried, failed]) == ["Evicted pod/first-attempt (x1): "]


def test_only_the_stages_own_objects_can_have_standing_warnings() -> None:
    mine, set_ = pod("m-predictor-1"), pod("s") | {"kind": "ReplicaSet", "metadata": {"name": "s", "uid": "uid-s"}}
    owner = deployment() | {"metadata": {"name": "minio", "uid": "uid-d"}}
    mine["metadata"]["ownerReferences"] = [{"uid": "uid-s"}]
    set_["metadata"]["ownerReferences"] = [{"uid": "uid-d"}]
    model, other = pod("k", labels={"serving.kserve.io/inferenceservice": "m"}), pod("notebook-0", ready=False)
    declared = [{"kind": "Deployment", "metadata": {"name": "minio"}}, service("m")]
    own = members.select_own([other, mine, set_, owner, model], declared)
    assert sorted(item["metadata"]["name"] for item in own) == ["k", "m-predictor-1", "minio", "s"]
