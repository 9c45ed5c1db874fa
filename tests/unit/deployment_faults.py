# ruff: noqa: E501 the texts of other programs stay whole
"""Faults of a deployment, as objects, events and logs show them: what is planted, and how its first line begins.

The texts are those of Kubernetes 1.34, KServe 0.20, containerd and runc. docs/checks.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.stage.observe import conditions
from pytest_vllm_stage.stage.observe.reader import Condition
from tests.unit.made_objects import (
    IMAGE,
    claim,
    condition,
    container_status,
    deployment,
    ended,
    event,
    job,
    pod,
    runtime,
    service,
    waiting,
)
from tests.unit.made_reader import Snapshot

Object = dict[str, Any]
RUNNING = container_status(ready=False)


@dataclass(frozen=True)
class Fault:
    """A planted fault.

    Attributes:
        planted: What is wrong, in a few words.
        line: The first line of the report, whole.
        there: The objects that show it.
        log: The lines of every log.
        events: The events.
        of: The condition that is waited for.
    """

    planted: str
    line: str
    there: tuple[Object, ...]
    log: tuple[str, ...] = ()
    events: tuple[Object, ...] = ()
    of: Callable[[str, float], Condition] = conditions.InferenceServiceReady

    def first_line(self) -> str:
        """What the run reports first."""
        awaited = self.of(self.there[0]["metadata"]["name"], 300)
        status = awaited.observe(Snapshot(*self.there, log=list(self.log), events=list(self.events)))
        assert status.trouble is not None, f"{self.planted}: {status.state}"
        return f"{awaited.failing}: {status.trouble.cause}"


NOT_READY = service(ready="False")
READY = "inferenceservice/m cannot become Ready"


def model(made: Object, *more: Object) -> tuple[Object, ...]:
    """An InferenceService that is not Ready, its runtime, its Deployment and a pod."""
    return (NOT_READY, runtime(), deployment(availableReplicas=0), made, *more)


def unready(**probe: Any) -> Object:
    container = {"name": "kserve-container", "image": IMAGE, "ports": [{"containerPort": 8080}], **probe}
    return pod(ready=False, statuses=[RUNNING], spec={"containers": [container]})


def refused(message: str) -> tuple[Object, ...]:
    made = deployment(availableReplicas=0)
    made["status"]["conditions"] = [condition("ReplicaFailure", "True", reason="FailedCreate", message=message)]
    return (NOT_READY, runtime(), made)


def unscheduled(message: str, **spec: Any) -> Object:
    reason = condition("PodScheduled", "False", reason="Unschedulable", message=message)
    return pod(ready=False, statuses=[], conditions=[reason], spec=spec)


def job_pod(made: Object) -> Object:
    made["metadata"]["ownerReferences"] = [{"uid": "uid-download-m"}]
    made["spec"]["restartPolicy"] = "Never"
    return made


def changed(item: Object, part: str, **fields: Any) -> Object:
    item[part] |= fields
    return item


UNREADY_PATH = unready(readinessProbe={"httpGet": {"path": "/ready", "port": 8080}})
UNREADY_PORT = unready(readinessProbe={"httpGet": {"path": "/health", "port": 8000}})
UNREADY_EXEC = unready(readinessProbe={"exec": {"command": ["curl", "-f", "localhost:8080/health"]}})
KILLED = pod(
    ready=False,
    statuses=[container_status(ready=False, restartCount=1)],
    spec={
        "containers": [
            {"name": "kserve-container", "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}}},
        ]
    },
)
GATED = unscheduled(
    "Scheduling is blocked due to non-empty scheduling gates", schedulingGates=[{"name": "example.com/w"}]
)
GATED["status"]["conditions"][0]["reason"] = "SchedulingGated"
STRANGE_SCHEDULER = pod(ready=False, statuses=[], conditions=[], spec={"schedulerName": "gang"})
READINESS_GATE = pod(statuses=[container_status()], ready=False)
READINESS_GATE["status"]["conditions"][0] |= {
    "reason": "ReadinessGatesNotReady",
    "message": 'corresponding condition of pod readiness gate "target-health.example.com/x" does not exist.',
}
STARTING = pod(ready=False, statuses=[waiting("ContainerCreating")])
MOVED = {
    "kind": "Node",
    "metadata": {"name": "g6-1"},
    "spec": {"taints": [{"key": "nvidia.com/gpu", "value": "l4", "effect": "NoSchedule"}]},
}
BUSY = {
    "kind": "Node",
    "metadata": {"name": "g6-2", "labels": {"topology.kubernetes.io/zone": "eu-b"}},
    "spec": {},
    "status": {"allocatable": {"nvidia.com/gpu": "1"}},
}
ON_GPU: list[Object] = [{"name": "kserve-container", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]
HOLDER = pod("notebook-0", spec={"nodeName": "g6-2", "containers": ON_GPU})
HOLDER["metadata"]["namespace"] = "team-b"
ZONAL: tuple[Object, ...] = (
    {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "model-m"},
        "spec": {"volumeName": "pv-1"},
        "status": {"phase": "Bound"},
    },
    {
        "kind": "PersistentVolume",
        "metadata": {"name": "pv-1"},
        "spec": {
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["eu-a"]}
                            ]
                        }
                    ]
                }
            }
        },
    },
)
WEIGHTS = [{"name": "weights", "persistentVolumeClaim": {"claimName": "model-m"}}]

ON_AMD: list[Object] = [{"name": "kserve-container", "resources": {"limits": {"amd.com/gpu": "1"}}}]
ON_DISK: list[Object] = [{"name": "kserve-container", "resources": {"requests": {"ephemeral-storage": "40Gi"}}}]


def offering(name: str, **allocatable: str) -> Object:
    return {"kind": "Node", "metadata": {"name": name}, "spec": {}, "status": {"allocatable": allocatable}}


PARTED = offering("a100", cpu="64", **{"nvidia.com/mig-1g.10gb": "7", "nvidia.com/gpu": "0"})
AMD = offering("mi300", **{"amd.com/gpu": "1"})
AMD_HOLDER = changed(pod("train-0", spec={"nodeName": "mi300", "containers": ON_AMD}), "metadata", namespace="team-b")
SMALL = offering("small", **{"ephemeral-storage": "20Gi"})
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
APART = {
    "topologyKey": "kubernetes.io/hostname",
    "labelSelector": {"matchLabels": {"app": "vllm"}},
    "namespaceSelector": {},
}

PRIVATE = pod(
    ready=False,
    statuses=[waiting("ImagePullBackOff", "unexpected status from HEAD request: 401 Unauthorized")],
    spec={"containers": [{"name": "kserve-container", "image": "quay.io/private/vllm:1"}]},
)
NAMED_PORT = unready(readinessProbe={"httpGet": {"path": "/health", "port": "http"}})
LOST_NODE = {
    "kind": "Node",
    "metadata": {"name": "g6-3"},
    "spec": {},
    "status": {
        "conditions": [
            condition("Ready", "Unknown", reason="NodeStatusUnknown", message="Kubelet stopped posting node status.")
        ]
    },
}
FORBIDDEN = (
    'fails to reconcile predictor: deployments.apps is forbidden: User "system:serviceaccount:kserve:kserve" cannot '
    'create resource "deployments" in API group "apps" in the namespace "ns"'
)


def unpulled(planted: str, cause: str, message: str) -> Fault:
    status = waiting("ImagePullBackOff", f'Back-off pulling image "{VLLM}": ErrImagePull: rpc error: code = {message}')
    made = pod(ready=False, statuses=[status], spec={"containers": [{"name": "kserve-container", "image": VLLM}]})
    return Fault(planted, f"{READY}: image {VLLM} cannot be pulled: {cause}", model(made))


def crashed(planted: str, cause: str, *log: str, code: int = 1) -> Fault:
    return Fault(planted, f"{READY}: {cause}", model(pod(ready=False, statuses=[ended(code, restarts=2)])), log)


VLLM = "quay.io/x/vllm:1"
PULL = f'failed to pull and unpack image "{VLLM}": '
RESOLVE = f'{PULL}failed to resolve reference "{VLLM}": '
INPUT = "[type=value_error, input_value=ArgsKwargs((), {'model_co...additional_config': {}}), input_type=ArgsKwargs]"
INVALID = "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig"
FURTHER = "    For further information visit https://errors.pydantic.dev/2.11/v/value_error"
LOST = changed(claim(), "status", phase="Lost")
LOST["spec"]["volumeName"] = "pv-1"
FAULTS_OF_IMAGES = (
    unpulled(
        "registry that refuses the credentials",
        "unexpected status from HEAD request to https://quay.io/v2/x/vllm/manifests/1: 401 Unauthorized",
        f"Unknown desc = {RESOLVE}unexpected status from HEAD request to https://quay.io/v2/x/vllm/manifests/1: 401 "
        "Unauthorized",
    ),
    unpulled(
        "image that does not exist for the node's processor",
        "it has no variant for the node's processor: no match for platform in manifest",
        f"NotFound desc = {PULL}no match for platform in manifest: not found",
    ),
    unpulled(
        "registry that refuses the credentials, as CRI-O reports it",
        "unauthorized: access to the requested resource is not authorized",
        f"Unknown desc = unable to pull image or OCI artifact: initializing source docker://{VLLM}: reading manifest 1 in "
        "quay.io/x/vllm: unauthorized: access to the requested resource is not authorized",
    ),
    unpulled(
        "image without the node's architecture, as CRI-O reports it",
        "it has no variant for the node's processor: no image found in manifest list for architecture arm64",
        'Unknown desc = choosing image instance: no image found in manifest list for architecture arm64, variant "v8", OS '
        "linux",
    ),
    unpulled(
        "registry that limits pulls",
        "unexpected status from HEAD request to https://registry-1.docker.io/v2/x/vllm/manifests/1: 429 Too Many Requests: "
        "toomanyrequests: You have reached your unauthenticated pull rate limit.",
        f"Unknown desc = {RESOLVE}unexpected status from HEAD request to https://registry-1.docker.io/v2/x/vllm/manifests/1: "
        "429 Too Many Requests: toomanyrequests: You have reached your unauthenticated pull rate limit.",
    ),
    unpulled(
        "node whose disk is too small for the image",
        "the node's disk is full: libtorch_cuda.so: no space left on device",
        f"Unknown desc = {PULL}failed to extract layer sha256:{'0' * 64}: write /var/lib/containerd/"
        "io.containerd.snapshotter.v1.overlayfs/snapshots/12/fs/usr/local/lib/libtorch_cuda.so: no space left on device: "
        "unknown",
    ),
)
FAULTS_OF_ENGINES = (
    crashed(
        "context that is longer than the KV cache",
        "no memory for the KV cache: one request of 131072 tokens needs 16.00 GiB, 5.30 GiB are free; 43424 tokens fit",
        "ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache is needed, "
        "which is larger than the available KV cache memory (5.30 GiB). Based on the available memory, the estimated "
        "maximum model length is 43424. Try increasing `gpu_memory_utilization` or decreasing `max_model_len`.",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ),
    crashed(
        "quantisation that the GPU does not support",
        "quantisation fp8 needs a GPU of compute capability 89, this one has 75",
        INVALID,
        "  Value error, The quantization method fp8 is not supported for the current GPU. Minimum capability: 89. Current "
        f"capability: 75. {INPUT}",
        FURTHER,
    ),
    crashed(
        "data type that the GPU does not support",
        "bfloat16 is not supported by Tesla T4 (compute capability 7.5)",
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has "
        "compute capability 7.5. You can use float16 instead by explicitly setting the `dtype` flag in CLI.",
    ),
    crashed(
        "architecture that the engine does not know",
        "the image's vLLM does not support model architecture 'NewForCausalLM'",
        INVALID,
        "  Value error, Model architectures ['NewForCausalLM'] are not supported for now. Supported architectures: "
        f"dict_keys(['LlamaForCausalLM']) {INPUT}",
        FURTHER,
    ),
    crashed(
        "combination of settings that the engine rejects",
        "container kserve-container ended with exit code 1 and restarted 2 times: Value error, Quantization method specified "
        "in the model config (gptq) does not match the quantization method specified in the `quantization` argument (awq).",
        INVALID,
        "  Value error, Quantization method specified in the model config (gptq) does not match the quantization method "
        f"specified in the `quantization` argument (awq). {INPUT}",
        FURTHER,
    ),
    crashed(
        "model with code of its own",
        "the model needs --trust-remote-code (vLLM: ValueError: The repository /mnt/models contains custom code which must "
        "be executed to correctly load the model.)",
        "ValueError: The repository /mnt/models contains custom code which must be executed to correctly load the model.",
        "Please pass the argument `trust_remote_code=True` to allow custom code to be run.",
    ),
    crashed(
        "folder without weights",
        "model path /mnt/models holds no weights (vLLM: RuntimeError: Cannot find any model weights with `/mnt/models`)",
        "RuntimeError: Cannot find any model weights with `/mnt/models`",
    ),
    crashed(
        "chat template that is not mounted",
        "chat template /templates/chat.jinja cannot be opened (vLLM: ValueError: The supplied chat template "
        "(/templates/chat.jinja) looks like a file path, but it failed to be opened.)",
        "ValueError: The supplied chat template (/templates/chat.jinja) looks like a file path, but it failed to be opened.",
    ),
    crashed(
        "more tensor parallelism than GPUs",
        "tensor-parallel-size 2 needs 2 GPUs, the pod has 1",
        "ValueError: World size (2) is larger than the number of available GPUs (1) in this node.",
    ),
    crashed(
        "gated model without accepted terms",
        "token refused: no access to gated model file https://huggingface.co/org/model/resolve/main/config.json",
        "huggingface_hub.errors.GatedRepoError: 403 Client Error. (Request ID: Root=1-0)",
        "Cannot access gated repo for url https://huggingface.co/org/model/resolve/main/config.json.",
    ),
    crashed(
        "shared memory that is too small for tensor parallelism",
        "shared memory is full (Error while creating shared memory segment /dev/shm/nccl-a (size 33030528), error: No space "
        "left on device (28))",
        "Error while creating shared memory segment /dev/shm/nccl-a (size 33030528), error: No space left on device (28)",
    ),
    crashed(
        "GPU whose memory another process uses",
        "gpu-memory-utilization 0.9 does not fit: 18.2 of 22.03 GiB are free on the GPU when the engine starts",
        "ValueError: Free memory on device (18.2/22.03 GiB) on startup is less than desired GPU memory utilization (0.9, "
        "19.83 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ),
    crashed(
        "setting outside its range",
        "container kserve-container ended with exit code 1 and restarted 2 times: gpu_memory_utilization: Input should be "
        "less than or equal to 1",
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for CacheConfig",
        "gpu_memory_utilization",
        "  Input should be less than or equal to 1 [type=less_than_equal, input_value=70.0, input_type=float]",
        "    For further information visit https://errors.pydantic.dev/2.11/v/less_than_equal",
    ),
    crashed(
        "volume that the download did not fill",
        "model path /mnt/models has no file config.json (vLLM: OSError: /mnt/models does not appear to have a file named "
        "config.json. Checkout 'https://huggingface.co//mnt/models/tree/None' for available files.)",
        "OSError: /mnt/models does not appear to have a file named config.json. Checkout "
        "'https://huggingface.co//mnt/models/tree/None' for available files.",
    ),
    crashed(
        "model that the hub does not have, or not for this token",
        "Repository not found, or the token has no access to it: https://huggingface.co/api/models/mistralai/Mistrl-24B",
        "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1-0)",
        "Repository Not Found for url: https://huggingface.co/api/models/mistralai/Mistrl-24B.",
        "Invalid username or password.",
    ),
    crashed(
        "quantization that the engine does not know",
        "unknown quantization w4a16 (vLLM: Value error, Unknown quantization method: w4a16. Must be one of ['awq', 'gptq'] "
        f"{INPUT})",
        INVALID,
        f"  Value error, Unknown quantization method: w4a16. Must be one of ['awq', 'gptq'] {INPUT}",
    ),
    crashed(
        "port variable of another program that Kubernetes injects",
        "a port variable is tcp://10.96.0.7:9000: Kubernetes sets it for a Service named as the program; rename the Service, "
        "or set enableServiceLinks: false",
        'panic: strconv.Atoi: parsing "tcp://10.96.0.7:9000": invalid syntax',
        code=2,
    ),
    crashed(
        "engine that is built for another processor generation",
        "container kserve-container ended with exit code 132 (SIGILL: the image needs instructions that the node's processor "
        "lacks) and restarted 2 times",
        code=132,
    ),
)
TOO_OLD = (
    "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8, please update your driver to a newer "
    "version, or use an earlier cuda container"
)
NEVER_STARTED = ended(128, "StartError", restarts=3)
NEVER_STARTED["lastState"]["terminated"]["message"] = (
    "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: unable to "
    f"start container process: {TOO_OLD}: unknown"
)
TAINTED = changed(
    pod(ready=False, statuses=[]),
    "status",
    phase="Failed",
    conditions=[
        condition(
            "DisruptionTarget", reason="DeletionByTaintManager", message="Taint manager: deleting due to NoExecute"
        )
    ],
)
STOPPED_REVISION = (
    'Revision "m-predictor-00001" failed with message: Unable to fetch image "quay.io/x/vllm:1": failed to resolve image to '
    "digest: HEAD https://quay.io/v2/x/vllm/manifests/1: unexpected status code 401 Unauthorized."
)
SERVERLESS = service(ready="False")
SERVERLESS["status"]["conditions"] = [condition("Ready", "False", reason="RevisionFailed", message=STOPPED_REVISION)]
UNLOADED = service(ready="False")
UNLOADED["status"]["modelStatus"] = {
    "transitionStatus": "BlockedByFailedLoad",
    "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "ValueError: no weights"},
}
LEAVING = service(ready="False")
LEAVING["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["inferenceservice.finalizers"]}
FAULTS = (
    *FAULTS_OF_IMAGES,
    *FAULTS_OF_ENGINES,
    Fault(
        "claim whose volume was deleted",
        "pvc/model-m cannot be bound: PVC model-m is Lost: its PersistentVolume pv-1 no longer exists",
        (LOST,),
        of=conditions.ClaimBound,
    ),
    Fault(
        "export that the node cannot mount",
        f'{READY}: pod p: a volume cannot be mounted: MountVolume.MountDevice failed for volume "pvc-1" : mount failed: exit '
        "status 32 mount.nfs: Connection timed out",
        model(STARTING),
        (),
        (
            event(
                STARTING,
                "FailedMount",
                'MountVolume.MountDevice failed for volume "pvc-1" : rpc error: code = Internal desc = mount failed: exit '
                "status 32\nMounting command: mount\nMounting arguments: -t nfs 10.0.0.9:/export /var/lib/kubelet/plugins/x\n"
                "Output: mount.nfs: Connection timed out",
            ),
        ),
    ),
    Fault(
        "pull secret that does not exist",
        f"{READY}: image quay.io/private/vllm:1 cannot be pulled: unexpected status from HEAD request: 401 Unauthorized "
        "(pull secret registry does not exist)",
        model(PRIVATE),
        (),
        (
            event(
                PRIVATE,
                "FailedToRetrieveImagePullSecret",
                "Unable to retrieve some image pull secrets (registry); attempting to pull the image may not succeed.",
            ),
        ),
    ),
    Fault(
        "probe by the name of a port that the container does not declare",
        f"{READY}: readiness probe GET :http/health names port http, which container kserve-container does not declare "
        "(declared: 8080)",
        model(NAMED_PORT),
        (),
        (
            event(
                NAMED_PORT,
                "Unhealthy",
                'Readiness probe errored and resulted in unknown state: strconv.Atoi: parsing "http": invalid syntax',
            ),
        ),
    ),
    Fault(
        "node that is lost while the model starts",
        f"{READY}: pod p runs on node g6-3, which is not Ready: Kubelet stopped posting node status.",
        model(pod(ready=False, statuses=[RUNNING], spec={"nodeName": "g6-3"}), LOST_NODE),
    ),
    Fault(
        "controller without the right to create Deployments",
        f"{READY}: InternalError: {FORBIDDEN}",
        (NOT_READY, runtime()),
        (),
        (event(NOT_READY, "InternalError", FORBIDDEN),),
    ),
    Fault(
        "image for another processor",
        f"{READY}: container kserve-container ended with exit code 255 and restarted 2 times: exec /usr/bin/python3: exec "
        "format error",
        model(pod(ready=False, statuses=[ended(255, restarts=2)])),
        ("exec /usr/bin/python3: exec format error",),
    ),
    Fault(
        "GPU driver that is too old for the engine",
        f"{READY}: the node's GPU driver does not fit the image's CUDA (vLLM: RuntimeError: The NVIDIA driver on your system "
        "is too old (found version 11040).)",
        model(pod(ready=False, statuses=[ended(1, restarts=2)])),
        (
            "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        ),
    ),
    Fault(
        "volume that another node holds",
        f'{READY}: pod p: a volume cannot be mounted: Multi-Attach error for volume "pvc-1" Volume is already exclusively '
        "attached to one node and can't be attached to another",
        model(STARTING),
        (),
        (
            event(
                STARTING,
                "FailedAttachVolume",
                'Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node and can\'t be '
                "attached to another",
            ),
        ),
    ),
    Fault(
        "policy webhook that denies the pod",
        f'{READY}: pods cannot be created: admission webhook "validate.policy.example.com" denied the request: label team '
        "is required",
        refused('admission webhook "validate.policy.example.com" denied the request: label team is required'),
    ),
    Fault(
        "image that runs as root where that is forbidden",
        f"{READY}: container kserve-container cannot be configured: container has runAsNonRoot and image will run as root",
        model(
            pod(
                ready=False,
                statuses=[
                    waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root")
                ],
            )
        ),
    ),
    Fault(
        "readiness probe on a path that does not exist",
        f"{READY}: readiness probe GET :8080/ready answers 404; the log says it listens on :8080",
        model(UNREADY_PATH),
        ("INFO: Uvicorn running on http://0.0.0.0:8080 (Press CTRL+C to quit)",),
        (event(UNREADY_PATH, "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404"),),
    ),
    Fault(
        "readiness probe on another port than the server's",
        f"{READY}: readiness probe GET :8000/health is refused; the log says it listens on :8080",
        model(UNREADY_PORT),
        ("INFO: Uvicorn running on http://0.0.0.0:8080 (Press CTRL+C to quit)",),
        (
            event(
                UNREADY_PORT, "Unhealthy", "Readiness probe failed: dial tcp 10.1.2.3:8000: connect: connection refused"
            ),
        ),
    ),
    Fault(
        "probe command that the image does not have",
        f'{READY}: readiness probe curl -f localhost:8080/health cannot run: exec: "curl": executable file not found in '
        "$PATH",
        model(UNREADY_EXEC),
        (),
        (
            event(
                UNREADY_EXEC,
                "Unhealthy",
                "Readiness probe errored and resulted in unknown state: rpc error: code = Unknown desc = failed to exec in "
                'container: failed to start exec "0a": OCI runtime exec failed: exec failed: unable to start container '
                'process: exec: "curl": executable file not found in $PATH: unknown',
            ),
        ),
    ),
    Fault(
        "liveness probe that kills the engine while it loads",
        f"{READY}: liveness probe GET :8080/health restarts container kserve-container: dial tcp 10.1.2.3:8080: connect: "
        "connection refused",
        model(KILLED),
        (),
        (
            event(KILLED, "Unhealthy", "Liveness probe failed: dial tcp 10.1.2.3:8080: connect: connection refused"),
            event(
                KILLED, "Killing", "Container kserve-container failed liveness probe, will be restarted", kind="Normal"
            ),
        ),
    ),
    Fault(
        "readiness gate that no controller fulfils",
        f'{READY}: pod p is not Ready: corresponding condition of pod readiness gate "target-health.example.com/x" does '
        "not exist.",
        model(READINESS_GATE),
    ),
    Fault(
        "command that the image does not have",
        f'{READY}: container kserve-container cannot be started: exec: "python4": executable file not found in $PATH',
        model(
            pod(
                ready=False,
                statuses=[
                    waiting(
                        "RunContainerError",
                        "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create "
                        'failed: unable to start container process: exec: "python4": executable file not found in $PATH: '
                        "unknown",
                    )
                ],
            )
        ),
    ),
    Fault(
        "command that ends at once, without an error",
        f"{READY}: container kserve-container ends with exit code 0 and was restarted 3 times: it does not keep running",
        model(
            pod(
                ready=False,
                statuses=[
                    container_status(
                        ready=False,
                        state={"waiting": {"reason": "CrashLoopBackOff"}},
                        lastState={"terminated": {"exitCode": 0, "reason": "Completed"}},
                        restartCount=3,
                    )
                ],
            )
        ),
    ),
    Fault(
        "file system that the engine may not write to",
        f"{READY}: path /.cache is closed to the container's user (PermissionError: [Errno 13] Permission denied: '/.cache')",
        model(pod(ready=False, statuses=[ended(1, restarts=2)])),
        ("Traceback (most recent call last):", "PermissionError: [Errno 13] Permission denied: '/.cache'"),
    ),
    Fault(
        "serving argument that the engine's version does not have",
        f"{READY}: unknown serving argument --swap-space=4 (vLLM: api_server.py: error: unrecognized arguments: "
        "--swap-space=4)",
        model(pod(ready=False, statuses=[ended(2, restarts=1)])),
        ("api_server.py: error: unrecognized arguments: --swap-space=4",),
    ),
    Fault(
        "init container that fails",
        f"{READY}: the object store does not answer at http://minio:9000/models",
        model(
            pod(
                ready=False,
                statuses=[waiting("PodInitializing")],
                initContainerStatuses=[
                    container_status(
                        "storage-initializer",
                        ready=False,
                        state={"waiting": {"reason": "CrashLoopBackOff"}},
                        lastState={"terminated": {"exitCode": 1}},
                        restartCount=2,
                    )
                ],
                spec={"initContainers": [{"name": "storage-initializer", "image": "i"}]},
            )
        ),
        (
            "Traceback (most recent call last):",
            'botocore.exceptions.EndpointConnectionError: Could not connect to the endpoint URL: "http://minio:9000/models"',
        ),
    ),
    Fault(
        "image name with a typing error",
        f'{READY}: image Registry/vllm:1 cannot be pulled: couldn\'t parse image name "Registry/vllm:1": invalid reference '
        "format: repository name must be lowercase",
        model(
            pod(
                ready=False,
                statuses=[
                    waiting(
                        "InvalidImageName",
                        'couldn\'t parse image name "Registry/vllm:1": invalid reference format: repository name must be '
                        "lowercase",
                    )
                ],
                spec={"containers": [{"name": "kserve-container", "image": "Registry/vllm:1"}]},
            )
        ),
    ),
    Fault(
        "ConfigMap of a volume that does not exist",
        f"{READY}: pod p: configmap chat-template does not exist",
        model(STARTING),
        (),
        (
            event(
                STARTING, "FailedMount", 'MountVolume.SetUp failed for volume "t" : configmap "chat-template" not found'
            ),
        ),
    ),
    Fault(
        "network plugin that fails on the node",
        f'{READY}: pod p: its network or sandbox cannot be created: Failed to create pod sandbox: plugin type="bridge" '
        "failed (add): no IP addresses available in range set",
        model(STARTING),
        (),
        (
            event(
                STARTING,
                "FailedCreatePodSandBox",
                'Failed to create pod sandbox: plugin type="bridge" failed (add): no IP addresses available in range set',
            ),
        ),
    ),
    Fault(
        "more GPUs than any node has",
        f"{READY}: pod p cannot be scheduled: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: not "
        "eligible",
        model(unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: not eligible")),
    ),
    Fault(
        "GPU nodes with a taint that is not tolerated",
        f"{READY}: pod p cannot be scheduled: node g6-1 has taint nvidia.com/gpu=l4:NoSchedule (scheduler: 0/1 nodes are "
        "available: 1 node(s) had untolerated taint(s).)",
        model(unscheduled("0/1 nodes are available: 1 node(s) had untolerated taint(s)."), MOVED),
    ),
    Fault(
        "GPUs that another team's pod uses",
        f"{READY}: pod p cannot be scheduled: node g6-2 has 0 of 1 nvidia.com/gpu free, 1 requested (used by "
        "team-b/notebook-0) (scheduler: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu.)",
        model(unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", containers=ON_GPU), BUSY, HOLDER),
    ),
    Fault(
        "GPUs that are offered in parts",
        f"{READY}: pod p cannot be scheduled: node a100 offers no nvidia.com/gpu of 1 requested (it offers 7 "
        "nvidia.com/mig-1g.10gb) (scheduler: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu.)",
        model(unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", containers=ON_GPU), PARTED),
    ),
    Fault(
        "GPUs of another vendor that another team's pod uses",
        f"{READY}: pod p cannot be scheduled: node mi300 has 0 of 1 amd.com/gpu free, 1 requested (used by team-b/train-0) "
        "(scheduler: 0/1 nodes are available: 1 Insufficient amd.com/gpu.)",
        model(unscheduled("0/1 nodes are available: 1 Insufficient amd.com/gpu.", containers=ON_AMD), AMD, AMD_HOLDER),
    ),
    Fault(
        "local disk of the node that other pods have reserved",
        f"{READY}: pod p cannot be scheduled: node small offers 20Gi ephemeral-storage of 40Gi requested (scheduler: 0/1 "
        "nodes are available: 1 Insufficient ephemeral-storage.)",
        model(unscheduled("0/1 nodes are available: 1 Insufficient ephemeral-storage.", containers=ON_DISK), SMALL),
    ),
    Fault(
        "anti-affinity to the other model on the only node",
        f"{READY}: pod p cannot be scheduled: node g6-2 runs team-b/notebook-0, which the pod's anti-affinity excludes from "
        "one kubernetes.io/hostname (scheduler: 0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules.)",
        model(
            unscheduled(
                "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules.",
                affinity={"podAntiAffinity": {REQUIRED: [APART]}},
            ),
            BUSY,
            changed(
                pod("notebook-0", spec={"nodeName": "g6-2"}), "metadata", namespace="team-b", labels={"app": "vllm"}
            ),
        ),
    ),
    Fault(
        "GPU node that only the scheduler knows the reason of",
        f"{READY}: pod p cannot be scheduled: node g6-2 has no known obstacle; node g6-1 has taint "
        "nvidia.com/gpu=l4:NoSchedule (scheduler: 0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) "
        "exceed max volume count.)",
        model(
            unscheduled(
                "0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) exceed max volume count."
            ),
            MOVED,
            BUSY,
        ),
    ),
    Fault(
        "volume in another zone than the GPU node",
        f"{READY}: pod p cannot be scheduled: node g6-2 has topology.kubernetes.io/zone=eu-b and cannot mount PVC model-m, "
        "whose volume pv-1 requires topology.kubernetes.io/zone In [eu-a] (scheduler: 0/1 nodes are available: 1 node(s) "
        "didn't match PersistentVolume's node affinity.)",
        model(
            unscheduled(
                "0/1 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity.", volumes=WEIGHTS
            ),
            BUSY,
            *ZONAL,
        ),
    ),
    Fault(
        "node selector that no node has",
        f"{READY}: pod p cannot be scheduled: node g6-2 has no label nvidia.com/gpu.present (node selector: "
        "nvidia.com/gpu.present=true) (scheduler: 0/1 nodes are available: 1 node(s) didn't match Pod's node "
        "affinity/selector.)",
        model(
            unscheduled(
                "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
                nodeSelector={"nvidia.com/gpu.present": "true"},
            ),
            BUSY,
        ),
    ),
    Fault(
        "scheduler that does not run",
        f"{READY}: pod p waits for scheduler gang, which has not processed it",
        model(STRANGE_SCHEDULER),
    ),
    Fault(
        "scheduling gate that is never removed",
        f"{READY}: pod p is held back by scheduling gate example.com/w",
        model(GATED),
    ),
    Fault(
        "quota that the pod exceeds",
        f'{READY}: pods cannot be created: pods "m-predictor-1" is forbidden: exceeded quota: compute, requested: '
        "limits.memory=3Gi, used: limits.memory=6Gi, limited: limits.memory=8Gi",
        refused(
            'pods "m-predictor-1" is forbidden: exceeded quota: compute, requested: limits.memory=3Gi, used: '
            "limits.memory=6Gi, limited: limits.memory=8Gi"
        ),
    ),
    Fault(
        "pod security level that forbids the pod",
        f'{READY}: pods cannot be created: pods "m-predictor-1" is forbidden: violates PodSecurity "restricted:latest": '
        'restricted volume types (volume "usr" uses restricted volume type "hostPath")',
        refused(
            'pods "m-predictor-1" is forbidden: violates PodSecurity "restricted:latest": restricted volume types (volume '
            '"usr" uses restricted volume type "hostPath")'
        ),
    ),
    Fault(
        "security context constraint that forbids the pod",
        f'{READY}: pods cannot be created: pods "m-predictor-1" is forbidden: unable to validate against any security context '
        "constraint: [provider restricted-v2: .containers[0].runAsUser: Invalid value: 1000: must be in the ranges: "
        "[1000680000, 1000689999]]",
        refused(
            'pods "m-predictor-1" is forbidden: unable to validate against any security context constraint: [provider '
            '"anyuid": Forbidden: not usable by user or serviceaccount, provider restricted-v2: .containers[0].runAsUser: '
            'Invalid value: 1000: must be in the ranges: [1000680000, 1000689999], provider "hostaccess": Forbidden: not '
            "usable by user or serviceaccount]"
        ),
    ),
    Fault(
        "service account that does not exist",
        f'{READY}: pods cannot be created: pods "m-predictor-1" is forbidden: error looking up service account ns/vllm: '
        'serviceaccount "vllm" not found',
        refused(
            'pods "m-predictor-1" is forbidden: error looking up service account ns/vllm: serviceaccount "vllm" not found'
        ),
    ),
    Fault(
        "admission webhook without endpoints",
        f'{READY}: pods cannot be created: Internal error occurred: failed calling webhook "pods.example.com": no endpoints '
        'available for service "guard"',
        refused(
            'Internal error occurred: failed calling webhook "pods.example.com": no endpoints available for service "guard"'
        ),
    ),
    Fault(
        "InferenceService that is stopped by its annotation",
        f"{READY}: inferenceservice/m is stopped by annotation serving.kserve.io/stop",
        (changed(service(ready="False"), "metadata", annotations={"serving.kserve.io/stop": "true"}), runtime()),
    ),
    Fault(
        "Deployment that is paused",
        "deployment/m-predictor cannot become Available: deployment/m-predictor is paused (spec.paused): no pod is created",
        (changed(deployment(availableReplicas=0), "spec", paused=True),),
        of=conditions.DeploymentAvailable,
    ),
    Fault(
        "model whose Deployment has no replicas",
        f"{READY}: deployment/m-predictor is scaled to 0 replicas (spec.replicas): no pod is created",
        (NOT_READY, runtime(), deployment(replicas=0)),
    ),
    Fault(
        "InferenceService that is still being deleted",
        f"{READY}: inferenceservice/m is being deleted since 2026-01-01T00:00:00Z; held by finalizer "
        "inferenceservice.finalizers",
        (LEAVING, runtime()),
    ),
    Fault(
        "Knative revision that cannot start",
        f"{READY}: RevisionFailed: {STOPPED_REVISION}",
        (SERVERLESS, runtime()),
    ),
    Fault(
        "model that KServe reports as not loaded",
        f"{READY}: the model cannot be loaded: ModelLoadFailed: ValueError: no weights",
        (UNLOADED, runtime()),
    ),
    Fault(
        "image whose signature the node refuses",
        f"{READY}: image {IMAGE} cannot be pulled: Source image rejected: A signature was required, but no signature exists",
        model(
            pod(
                ready=False,
                statuses=[
                    waiting(
                        "SignatureValidationFailed",
                        "Source image rejected: A signature was required, but no signature exists",
                    )
                ],
            )
        ),
    ),
    Fault(
        "image that needs a newer GPU driver than the node has",
        f"{READY}: container kserve-container cannot be started: {TOO_OLD}",
        model(pod(ready=False, statuses=[NEVER_STARTED])),
    ),
    Fault(
        "pod that a taint of its node ends",
        f"{READY}: pod p was ended (DeletionByTaintManager): Taint manager: deleting due to NoExecute",
        model(TAINTED),
    ),
    Fault(
        "Job that is suspended",
        "job/download-m cannot complete: job/download-m is suspended (spec.suspend): no pod is created",
        (changed(job(), "spec", suspend=True),),
        of=conditions.JobComplete,
    ),
    Fault(
        "S3 credentials that the store refuses",
        "job/download-m cannot complete: models/m/config.json could not be read: HTTP 403 InvalidAccessKeyId: The Access Key "
        "Id you provided does not exist in our records.",
        (job(), job_pod(pod(statuses=[ended(1)]))),
        (
            'error: models/m/config.json could not be read: HTTP 403 <?xml version="1.0" encoding="UTF-8"?> <Error><Code>'
            "InvalidAccessKeyId</Code><Message>The Access Key Id you provided does not exist in our records.</Message><Key>",
        ),
        of=conditions.JobComplete,
    ),
    Fault(
        "volume of a class that does not exist",
        "job/download-m cannot complete: PVC model-m cannot bind: there is no StorageClass gp4 (existing: gp3)",
        (
            job(),
            job_pod(
                unscheduled(
                    "pod has unbound immediate PersistentVolumeClaims",
                    volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "model-m"}}],
                )
            ),
            claim(storage_class="gp4"),
            {"kind": "StorageClass", "metadata": {"name": "gp3"}, "provisioner": "ebs.csi.aws.com"},
        ),
        of=conditions.JobComplete,
    ),
    Fault(
        "namespace of an earlier stage that is still being deleted",
        "namespace/ns cannot be used: namespace/ns is being deleted since 2026-01-01T00:00:00Z; held by finalizer "
        "kubernetes; Some content in the namespace has finalizers remaining: x.example.com in 1 resource instances",
        (
            {
                "kind": "Namespace",
                "metadata": {"name": "ns", "deletionTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"finalizers": ["kubernetes"]},
                "status": {
                    "phase": "Terminating",
                    "conditions": [
                        condition(
                            "NamespaceFinalizersRemaining",
                            message="Some content in the namespace has finalizers remaining: x.example.com in 1 resource "
                            "instances",
                        )
                    ],
                },
            },
        ),
        of=conditions.NamespaceActive,
    ),
)
