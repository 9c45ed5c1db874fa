# ruff: noqa: E501 the texts of other programs stay whole
"""Pods that are not created, and objects that their controllers leave as they are."""

from __future__ import annotations

from pytest_vllm_stage.stage.observe import conditions
from tests.unit.deployment_faults.fault import NOT_READY, READY, Fault, Object, changed
from tests.unit.made_objects import condition, deployment, event, job, pod, runtime, served_spec, service


def refused(message: str) -> tuple[Object, ...]:
    made = deployment(availableReplicas=0)
    made["status"]["conditions"] = [condition("ReplicaFailure", "True", reason="FailedCreate", message=message)]
    return (NOT_READY, runtime(), made)


FORBIDDEN = (
    'fails to reconcile predictor: deployments.apps is forbidden: User "system:serviceaccount:kserve:kserve" cannot '
    'create resource "deployments" in API group "apps" in the namespace "ns"'
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

UNROUTED = service(ready="False")
UNROUTED["status"]["conditions"] = [
    condition("PredictorReady"),
    condition(
        "IngressReady",
        "False",
        reason="HttpRoute not ready",
        message="predictor HttpRoute not accepted: NoMatchingParent",
    ),
    condition("Ready", "False", reason="HttpRoute not ready"),
]

FAULTS: tuple[Fault, ...] = (
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
        "policy webhook that denies the pod",
        f'{READY}: pods cannot be created: admission webhook "validate.policy.example.com" denied the request: label team '
        "is required",
        refused('admission webhook "validate.policy.example.com" denied the request: label team is required'),
    ),
    Fault(
        "controller without the right to create Deployments",
        f"{READY}: InternalError: {FORBIDDEN}",
        (NOT_READY, runtime()),
        (),
        (event(NOT_READY, "InternalError", FORBIDDEN),),
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
        "InferenceService that is stopped by its annotation",
        f"{READY}: inferenceservice/m is stopped by annotation serving.kserve.io/stop",
        (changed(service(ready="False"), "metadata", annotations={"serving.kserve.io/stop": "true"}), runtime()),
    ),
    Fault(
        "InferenceService that is still being deleted",
        f"{READY}: inferenceservice/m is being deleted since 2026-01-01T00:00:00Z; held by finalizer "
        "inferenceservice.finalizers",
        (LEAVING, runtime()),
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
        "Job that is suspended",
        "job/download-m cannot complete: job/download-m is suspended (spec.suspend): no pod is created",
        (changed(job(), "spec", suspend=True),),
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
    Fault(
        "KServe controller that does not run",
        f"{READY}: inferenceservice/m has no status: no KServe controller has processed it (kubectl get pods -A -l "
        "control-plane=kserve-controller-manager)",
        (service() | {"status": {}}, runtime()),
    ),
    Fault(
        "gateway that does not accept the model's route",
        f"{READY}: the model runs, and its address is not ready: IngressReady is False: HttpRoute not ready: predictor "
        "HttpRoute not accepted: NoMatchingParent",
        (UNROUTED, runtime(), deployment(), pod(spec=served_spec())),
    ),
)
