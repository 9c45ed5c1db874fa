"""States of workloads and InferenceServices that their controllers report: pure functions over objects and events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import runbook
from pytest_vllm_stage.stage.observe.trouble import Trouble, warnings_of

#: Reasons of conditions by which a controller gives up until the object changes, with the consecutive observations that
#: count: Knative's revision may still become Ready when its container's next start succeeds.
CONTROLLER_FAILURES = {
    "ReconcileFailed": 10,
    "ReconcileError": 10,
    "ProgressDeadlineExceeded": 10,
    "RevisionFailed": 60,
}
#: Reasons of events by which KServe's controller reports that it could not create what a service needs.
RECONCILE_EVENTS = ("InternalError", "ReconcileError", "UpdateFailed")
#: KServe deletes the pods of a service with this annotation.
STOP_ANNOTATION = "serving.kserve.io/stop"


def find_creation_trouble(owner: Object, events: Iterable[Object]) -> Trouble | None:
    """Pods that are not created: quota, limit range, security policy."""
    failure = objects.condition(owner, "ReplicaFailure")
    if failure.get("status") == "True":
        return Trouble(f"pods cannot be created: {runbook.cut(failure.get('message', ''))}", times=3)
    for event in warnings_of(owner, events):
        if event.get("reason") == "FailedCreate" and not (owner.get("status") or {}).get("active"):
            return Trouble(f"pods cannot be created: {runbook.cut(event.get('message', ''))}", times=3)
    return None


def find_runtime_trouble(service: Object, runtime: Object | None, there: Sequence[str]) -> Trouble | None:
    """A ServingRuntime that does not exist, or does not support the model's format; ``there`` are the existing ones."""
    model = service["spec"]["predictor"].get("model") or {}
    wanted, form = model.get("runtime"), (model.get("modelFormat") or {}).get("name")
    if not wanted:
        return None
    if runtime is None:
        return Trouble(f"ServingRuntime {wanted} does not exist (existing: {', '.join(there) or 'none'})", times=6)
    supported = [str(entry.get("name")) for entry in runtime["spec"].get("supportedModelFormats") or []]
    if form and supported and form not in supported:
        cause = f"ServingRuntime {wanted} does not support model format {form} (it supports: {', '.join(supported)})"
        return Trouble(cause, times=6)
    return None


def find_declared_stop(item: Object) -> Trouble | None:
    """A workload that is declared not to run: paused, suspended, without replicas, or stopped by annotation."""
    spec, annotations = item.get("spec") or {}, item["metadata"].get("annotations") or {}
    if spec.get("paused"):
        return Trouble(f"{objects.reference(item)} is paused (spec.paused): no pod is created", times=3)
    if item["kind"] == "Deployment" and spec.get("replicas") == 0:
        return Trouble(f"{objects.reference(item)} is scaled to 0 replicas (spec.replicas): no pod is created", times=3)
    queued = "kueue.x-k8s.io/queue-name" in (item["metadata"].get("labels") or {})
    if spec.get("suspend") and not queued:  # Kueue suspends a Job until it admits it
        return Trouble(f"{objects.reference(item)} is suspended (spec.suspend): no pod is created", times=20)
    if str(annotations.get(STOP_ANNOTATION, "")).lower() == "true":
        return Trouble(f"{objects.reference(item)} is stopped by annotation {STOP_ANNOTATION}", times=3)
    return None


def find_condition_trouble(item: Object) -> Trouble | None:
    """A failure that a controller reports in a condition; a conflict of two writers resolves by itself."""
    for entry in (item.get("status") or {}).get("conditions") or []:
        message = str(entry.get("message", ""))
        failed = entry.get("status") != "True" and entry.get("reason") in CONTROLLER_FAILURES
        if failed and "the object has been modified" not in message:
            return Trouble(f"{entry['reason']}: {runbook.cut(message)}", times=CONTROLLER_FAILURES[entry["reason"]])
    return None


def find_reconcile_trouble(service: Object, events: Iterable[Object]) -> Trouble | None:
    """What a controller reports in an event of the service for which it has created nothing.

    One that tries again may have healed, and its event stays for an hour: so this counts only while nothing exists.
    """
    found = [event for event in warnings_of(service, events) if event.get("reason") in RECONCILE_EVENTS]
    messages = [str(event.get("message", "")) for event in found]
    lasting = [message for message in messages if "the object has been modified" not in message]
    return Trouble(f"{found[-1]['reason']}: {runbook.cut(lasting[-1])}", times=10) if lasting else None


def find_unprocessed_trouble(service: Object) -> Trouble | None:
    """A service that no controller has given a status: KServe's is not running, or does not watch the namespace."""
    if (service.get("status") or {}).get("conditions"):
        return None
    cause = f"{objects.reference(service)} has no status: no KServe controller has processed it"
    return Trouble(f"{cause} (kubectl get pods -A -l control-plane=kserve-controller-manager)", times=240)


def find_address_trouble(service: Object) -> Trouble | None:
    """An address that no gateway or router takes, though the model runs: that takes seconds where it works."""
    ingress = objects.condition(service, "IngressReady")
    if not objects.is_true(service, "PredictorReady") or ingress.get("status") != "False":
        return None
    why = runbook.cut(f"{ingress.get('reason') or 'no reason given'}: {ingress.get('message') or 'no message'}")
    return Trouble(f"the model runs, and its address is not ready: IngressReady is False: {why}", times=300)


def find_specification_trouble(service: Object) -> Trouble | None:
    """An error in the specification that KServe itself reports."""
    model = (service.get("status") or {}).get("modelStatus") or {}
    failure = model.get("lastFailureInfo") or {}
    reason = runbook.cut(f"{failure.get('reason', 'no reason given')}: {failure.get('message', '')}")
    if model.get("transitionStatus") == "InvalidSpec":
        return Trouble(f"KServe rejects the specification: {reason}", times=2)
    if model.get("transitionStatus") == "BlockedByFailedLoad":  # until the container's next start succeeds
        return Trouble(f"the model cannot be loaded: {reason}", times=60)
    return None


def find_deletion_trouble(item: Object | None) -> Trouble | None:
    """An object that is being deleted, and what holds its deletion back."""
    since = ((item or {}).get("metadata") or {}).get("deletionTimestamp")
    if item is None or not since:
        return None
    return Trouble(f"{objects.reference(item)} is being deleted since {since}{describe_blockers(item)}", times=3)


def describe_blockers(item: Object) -> str:
    """The finalizers and conditions that hold a deletion back, to be appended to a sentence."""
    finalizers = [*(item["metadata"].get("finalizers") or []), *((item.get("spec") or {}).get("finalizers") or [])]
    remaining = [
        runbook.cut(str(entry.get("message", "")))
        for entry in (item.get("status") or {}).get("conditions") or []
        if entry.get("status") == "True" and str(entry.get("type", "")).endswith(("Remaining", "Failure"))
    ]
    held = [f"held by finalizer {', '.join(map(str, finalizers))}"] if finalizers else []
    return "".join(f"; {text}" for text in [*held, *remaining])
