"""States that cannot heal are distinguished from similar ones that can."""

from __future__ import annotations

import pytest

from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import claims, controllers, messages, trouble
from pytest_vllm_stage.stage.observe.scheduling import PlacementFacts
from pytest_vllm_stage.stage.quantities import parse_quantity
from tests.unit.made_objects import (
    claim,
    condition,
    container_status,
    deployment,
    ended,
    event,
    pod,
    service,
    volume,
    waiting,
)


def no_logs(_pod: str, _container: str, _previous: bool) -> list[str]:
    return []


def of(made: Object, events: list[Object] | None = None, log: list[str] | None = None) -> trouble.Trouble | None:
    return trouble.find_pod_trouble([made], events or [], lambda *_: log or [])


def cause(found: trouble.Trouble | None) -> str:
    assert found is not None
    return found.cause


def test_healthy_pod_has_no_trouble() -> None:
    assert of(pod()) is None
    assert of(pod(ready=False)) is None
    assert of(pod(ready=False, statuses=[waiting("ContainerCreating")])) is None
    assert of(pod(statuses=[ended(0, "Completed")])) is None


def test_a_killed_container_is_named_with_its_limit() -> None:
    found = of(pod(statuses=[ended(137, "OOMKilled", restarts=1)]))
    assert cause(found) == "container kserve-container was OOM-killed (memory limit 512Mi)"
    assert found is not None
    assert found.previous


def test_an_unknown_exit_counts_when_it_repeats() -> None:
    assert of(pod(statuses=[ended(1, restarts=1)])) is None
    assert cause(of(pod(statuses=[ended(1, restarts=2)]))) == (
        "container kserve-container ended with exit code 1 and restarted 2 times"
    )


def test_a_known_exit_counts_at_once() -> None:
    log = ["OSError: Repo id must be in the form 'a/b': '/mnt/models/x'."]
    assert cause(of(pod(statuses=[ended(1)]), log=log)).startswith("model path /mnt/models/x does not exist")


def test_a_job_pod_has_no_second_try() -> None:
    made = pod(statuses=[ended(3)], spec={"restartPolicy": "Never"})
    assert cause(of(made)) == "container kserve-container ended with exit code 3"


def test_the_log_of_the_ended_instance_is_read() -> None:
    asked: list[tuple[str, str, bool]] = []

    def logs(name: str, container: str, previous: bool) -> list[str]:
        asked.append((name, container, previous))
        return []

    trouble.find_pod_trouble([pod("a", statuses=[ended(1)]), pod("b", statuses=[ended(1, restarts=1)])], [], logs)
    assert asked == [("a", "kserve-container", False), ("b", "kserve-container", True)]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "couldn't find key secretkey in Secret ns/minio-credentials",
            'secret minio-credentials has no key "secretkey"',
        ),
        ('secret "minio-credentials" not found', "secret minio-credentials does not exist"),
        ('configmap "model-loader" not found', "configmap model-loader does not exist"),
    ],
)
def test_a_missing_secret_or_key_is_named(message: str, expected: str) -> None:
    found = of(pod(statuses=[waiting("CreateContainerConfigError", message)]))
    assert cause(found) == expected
    assert found is not None
    assert found.times < 20


def test_a_kubelet_that_is_late_gets_time() -> None:
    message = "failed to sync secret cache: timed out waiting for the condition"
    found = of(pod(statuses=[waiting("CreateContainerConfigError", message)]))
    assert found is not None
    assert found.times >= 20


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"])
def test_an_image_that_cannot_be_pulled_is_named(reason: str) -> None:
    found = of(pod(statuses=[waiting(reason, "not found")]))
    assert cause(found).startswith("image registry.example/vllm@sha256:")
    assert cause(found).endswith(" cannot be pulled: not found")


def test_evicted_pod_is_reported_with_the_reason() -> None:
    assert cause(of(pod(ready=False, reason="Evicted", message="low on ephemeral-storage"))) == (
        "pod p was evicted: low on ephemeral-storage"
    )


def unschedulable(message: str, **spec: object) -> Object:
    conditions = [condition("PodScheduled", "False", reason="Unschedulable", message=message)]
    return pod(ready=False, statuses=[], conditions=conditions, spec=spec)


def test_an_unschedulable_pod_names_what_it_asks_for() -> None:
    made = unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", nodeSelector={"type": "g6"})
    found = of(made)
    assert cause(found) == (
        "pod p cannot be scheduled (node selector type=g6): 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    )
    assert found is not None
    assert found.times > 1, "right after creation every pod is unscheduled"


def test_a_node_on_its_way_is_waited_for() -> None:
    made = unschedulable("0/3 nodes are available")
    assert of(made, [event(made, "TriggeredScaleUp", kind="Normal")]) is None


def test_a_pod_that_leaves_is_not_judged() -> None:
    made = pod(statuses=[ended(137, "OOMKilled", restarts=5)])
    made["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert of(made) is None


def test_failed_mount_names_the_missing_secret() -> None:
    made = pod(ready=False, statuses=[waiting("ContainerCreating")])
    mount = event(made, "FailedMount", 'MountVolume.SetUp failed for volume "s" : secret "tls" not found')
    assert cause(of(made, [mount])) == "pod p: secret tls does not exist"
    running = pod(ready=False)
    assert of(running, [event(running, "FailedMount", "late")]) is None


def test_pods_that_are_not_created_are_explained_by_their_owner() -> None:
    made = deployment()
    made["status"]["conditions"] = [condition("ReplicaFailure", message="exceeded quota: compute")]
    assert cause(controllers.find_creation_trouble(made, [])) == "pods cannot be created: exceeded quota: compute"
    assert controllers.find_creation_trouble(deployment(), []) is None
    refused = event(deployment(), "FailedCreate", "forbidden: maximum memory usage per Container is 1Gi")
    assert "maximum memory usage" in cause(controllers.find_creation_trouble(deployment(), [refused]))


def test_invalid_specification_is_reported_as_kserve_reports_it() -> None:
    made = service()
    assert controllers.find_specification_trouble(made) is None
    failure = {"reason": "RuntimeNotRecognized", "message": "no runtime x"}
    made["status"]["modelStatus"] = {"transitionStatus": "InvalidSpec", "lastFailureInfo": failure}
    assert "RuntimeNotRecognized: no runtime x" in cause(controllers.find_specification_trouble(made))


STATIC = {"kind": "StorageClass", "metadata": {"name": "fast"}, "provisioner": "kubernetes.io/no-provisioner"}
DYNAMIC = STATIC | {"provisioner": "ebs.csi.aws.com"}


def test_a_claim_with_a_fitting_volume_may_bind() -> None:
    assert claims.explain_pending_claim(claim(size="40Gi"), [STATIC], [volume("40Gi")], []) is None
    assert (
        claims.explain_pending_claim(claim(size="40Gi"), [STATIC], [volume("40Gi", claimed_by="uid-model-m")], [])
        is None
    )
    assert claims.explain_pending_claim(claim(phase="Bound"), [], [], []) is None


@pytest.mark.parametrize(
    "there",
    [[], [volume("39Gi")], [volume("40Gi", storage_class="slow")], [volume("40Gi", claimed_by="another")]],
)
def test_claim_without_a_fitting_static_volume_is_reported(there: list[Object]) -> None:
    found = claims.explain_pending_claim(claim(size="40Gi"), [STATIC], there, [])
    assert cause(found) == "PVC model-m cannot bind: no PersistentVolume of StorageClass fast offers 40Gi"


def test_a_claim_waits_for_its_first_consumer_in_peace() -> None:
    made = claim()
    waits = event(made, "WaitForFirstConsumer", "waiting for first consumer", kind="Normal")
    assert claims.explain_pending_claim(made, [DYNAMIC], [], [waits]) is None


def test_claim_of_an_unknown_class_or_failed_provisioner_is_reported() -> None:
    assert "there is no StorageClass gone (existing: fast)" in cause(
        claims.explain_pending_claim(claim(storage_class="gone"), [DYNAMIC], [], [])
    )
    made = claim()
    failed = event(made, "ProvisioningFailed", "quota of volumes exceeded")
    assert "quota of volumes exceeded" in cause(claims.explain_pending_claim(made, [DYNAMIC], [], [failed]))


@pytest.mark.parametrize(
    ("text", "number"), [("500Mi", 500 * 2**20), ("1.5", 1.5), ("200m", 0.2), ("1e3", 1000), ("2G", 2e9), (4, 4)]
)
def test_quantities(text: object, number: float) -> None:
    assert parse_quantity(text) == pytest.approx(number)


def test_a_quantity_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="'12Qi' is not a quantity"):
        parse_quantity("12Qi")


def test_a_container_with_a_past_of_its_own_is_judged_by_its_last_end() -> None:
    well = container_status(lastState={"terminated": {"exitCode": 0}}, restartCount=5)
    assert of(pod(statuses=[well])) is None


def with_probe(made: Object, kind: str, path: str = "/healthz", port: int | str = 8080) -> Object:
    made["spec"]["containers"][0] |= {
        f"{kind}Probe": {"httpGet": {"path": path, "port": port}},
        "ports": [{"name": "http", "containerPort": 8080}],
    }
    return made


ON_8080 = ["INFO: Started server process", "INFO:     Uvicorn running on http://0.0.0.0:8080 (Press CTRL+C to quit)"]


@pytest.mark.parametrize(
    ("port", "message", "log", "expected"),
    [
        (
            "http",
            "Readiness probe failed: HTTP probe failed with statuscode: 404",
            ON_8080,
            "readiness probe GET :8080/healthz answers 404; the log says it listens on :8080",
        ),
        (
            8080,
            "Readiness probe failed: HTTP probe failed with statuscode: 401",
            [],
            "probe GET :8080/healthz answers 401",
        ),
        (
            9090,
            'Readiness probe failed: Get "http://10.1.0.4:9090/healthz": dial tcp 10.1.0.4:9090: connection refused',
            ON_8080,
            "readiness probe GET :9090/healthz is refused; the log says it listens on :8080",
        ),
    ],
)
def test_a_readiness_probe_that_can_never_succeed_is_named(
    port: int | str, message: str, log: list[str], expected: str
) -> None:
    made = with_probe(pod(ready=False), "readiness", port=port)
    found = of(made, [event(made, "Unhealthy", message)], log)
    assert cause(found).endswith(expected)
    assert found is not None
    assert 1 < found.times <= 20, "seen several times, and reported within a minute"


@pytest.mark.parametrize(
    ("message", "log"),
    [
        ("Readiness probe failed: HTTP probe failed with statuscode: 503", ON_8080),
        ("Readiness probe failed: dial tcp 10.1.0.4:8080: connect: connection refused", ["Loading weights"]),
        ("Readiness probe failed: dial tcp 10.1.0.4:8080: connect: connection refused", ON_8080),
        (
            "Readiness probe failed: dial tcp 10.1.0.4:8080: connect: connection refused",
            ["[c10d] The server socket is listening on [::]:29500", "DP Coordinator listening on tcp://127.0.0.1:5555"],
        ),
        ("Readiness probe failed: context deadline exceeded", ON_8080),
    ],
)
def test_a_probe_fails_while_a_model_loads(message: str, log: list[str]) -> None:
    made = with_probe(pod(ready=False), "readiness")
    assert of(made, [event(made, "Unhealthy", message)], log) is None
    assert (
        of(with_probe(pod(), "readiness"), [event(made, "Unhealthy", "Readiness probe failed: statuscode: 404")])
        is None
    )


def test_a_liveness_probe_that_restarts_the_container_is_named() -> None:
    status = container_status(restartCount=1, ready=False, lastState={"terminated": {"exitCode": 0}})
    made = with_probe(pod(ready=False, statuses=[status]), "liveness", "/alive")
    events = [
        event(made, "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 404"),
        event(made, "Killing", "Container kserve-container failed liveness probe, will be restarted", "Normal"),
    ]
    expected = (
        "liveness probe GET :8080/alive restarts container kserve-container: HTTP probe failed with statuscode: 404"
    )
    assert cause(of(made, events)) == expected
    assert of(made, events[:1]) is None


def test_events_of_another_container_are_not_taken() -> None:
    made = with_probe(pod(ready=False), "readiness")
    other = event(made, "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404")
    other["involvedObject"]["fieldPath"] = "spec.containers{sidecar}"
    assert of(made, [other]) is None


def test_taints_are_named_with_their_node() -> None:
    made = pod(ready=False, statuses=[])
    made["status"]["conditions"] = [condition("PodScheduled", "False", reason="Unschedulable", message="0/2 nodes")]
    taints = [
        {"key": "dedicated", "value": "gpu", "effect": "NoSchedule"},
        {"key": "soft", "effect": "PreferNoSchedule"},
    ]
    nodes: list[Object] = [
        {"metadata": {"name": "a"}, "spec": {"taints": taints}},
        {"metadata": {"name": "b"}, "spec": {}},
    ]
    around = PlacementFacts(nodes)
    found = trouble.find_pod_trouble([made], [], no_logs, around)
    assert cause(found) == (
        "pod p cannot be scheduled: node b has no known obstacle; node a has taint dedicated=gpu:NoSchedule "
        "(scheduler: 0/2 nodes)"
    )
    for toleration in ({"operator": "Exists"}, {"key": "dedicated", "value": "gpu", "effect": "NoSchedule"}):
        made["spec"]["tolerations"] = [toleration]
        assert cause(trouble.find_pod_trouble([made], [], no_logs, around)) == "pod p cannot be scheduled: 0/2 nodes"
    made["spec"]["tolerations"] = [{"key": "dedicated", "value": "cpu"}]
    assert "dedicated=gpu" in cause(trouble.find_pod_trouble([made], [], no_logs, around))


def test_a_removed_pod_counts_until_another_one_replaces_it() -> None:
    message = "The node was low on resource: memory."
    gone = pod(
        "old", ready=False, statuses=[], phase="Failed", reason="Evicted", message=message, spec={"nodeName": "n"}
    )
    assert cause(trouble.find_pod_trouble([gone], [], no_logs)) == f"pod old was evicted from node n: {message}"
    assert trouble.find_pod_trouble([gone, pod("new", ready=False)], [], no_logs) is None
    ended_by_node = pod("old", statuses=[], phase="Failed", reason="NodeShutdown", message="Pod was terminated")
    assert cause(of(ended_by_node)) == "pod old was ended (NodeShutdown): Pod was terminated"


def test_job_pod_with_a_running_sidecar_cannot_complete() -> None:
    done = container_status("download", state={"terminated": {"exitCode": 0}})
    made = pod("j-x", statuses=[done, container_status("istio-proxy")])
    assert cause(trouble.find_job_pod_trouble([made])) == (
        "container download of pod j-x has ended, but istio-proxy still runs: "
        "the Job completes when all containers have ended"
    )
    assert trouble.find_job_pod_trouble([pod(statuses=[done])]) is None
    assert trouble.find_job_pod_trouble([pod(statuses=[container_status("a"), container_status("b")])]) is None


def test_a_runtime_is_missing_or_does_not_support_the_format() -> None:
    made = service(modelFormat={"name": "vLLM"})
    assert (
        cause(controllers.find_runtime_trouble(made, None, ["a", "b"]))
        == "ServingRuntime vllm does not exist (existing: a, b)"
    )
    supported = {"spec": {"supportedModelFormats": [{"name": "onnx"}, {"name": "sklearn"}]}}
    assert cause(controllers.find_runtime_trouble(made, supported, [])) == (
        "ServingRuntime vllm does not support model format vLLM (it supports: onnx, sklearn)"
    )
    assert controllers.find_runtime_trouble(made, {"spec": {"supportedModelFormats": [{"name": "vLLM"}]}}, []) is None
    assert controllers.find_runtime_trouble(made, {"spec": {}}, []) is None


def test_what_a_controller_cannot_do_is_its_own_words() -> None:
    made = service(ready="False")
    made["status"]["conditions"] += [
        condition("X", "False", reason="ReconcileFailed", message="volumeMount q: not found")
    ]
    assert cause(controllers.find_condition_trouble(made)) == "ReconcileFailed: volumeMount q: not found"
    made["status"]["conditions"][-1]["message"] = "Operation cannot be fulfilled: the object has been modified"
    assert controllers.find_condition_trouble(made) is None
    assert controllers.find_condition_trouble(service()) is None


def test_the_innermost_error_of_a_container_runtime_comes_first() -> None:
    chain = (
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
        'unable to start container process: exec: "/nope": stat /nope: no such file or directory: unknown'
    )
    assert cause(of(pod(statuses=[waiting("RunContainerError", chain)]))) == (
        'container kserve-container cannot be started: exec: "/nope": stat /nope: no such file or directory'
    )
    assert messages.innermost("plain words") == "plain words"
