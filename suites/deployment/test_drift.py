"""Does the live stage equal its declaration, field by field and in both directions?

A field that the platform adds legitimately is known by its path and its owner. Each line names who set the field, which
distinguishes a manual change from an admission webhook and from a controller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_stage.checks.stage import members
from pytest_vllm_stage.checks.stage.drift import compare, strangers
from pytest_vllm_stage.stage import drift, objects
from pytest_vllm_stage.stage.observe import health

if TYPE_CHECKING:
    from pytest_vllm_stage import StageReader

    Object = dict[str, Any]


#: Kinds of which KServe, Knative or a Deployment generates objects.
GENERATED_KINDS = (
    "Deployment",
    "ReplicaSet",
    "Service",
    "Ingress",
    "HTTPRoute",
    "VirtualService",
    "HorizontalPodAutoscaler",
    "Route",
)


def test_declared_objects_are_live_unchanged(reader: StageReader, declared: list[Object], kubectl: str) -> None:
    """Every declared object exists with the declared fields and no others.

    A changed field takes effect at the next restart at the latest, and every later number is about another stage.
    """
    assert declared, "the overlay declares no object: nothing was compared"
    around = compare.surroundings(reader.listed_where_allowed("LimitRange"), reader.listed("InferenceService"))
    secrets = {objects.name_of(one): one for one in reader.listed_where_allowed("Secret")}
    lines, unread = [], []
    for manifest in declared:
        name, kind = objects.name_of(manifest), objects.kind_of(manifest)
        if manifest["kind"] == "Secret":
            lines += compare.compare_declared(manifest, secrets.get(name), around)
        elif manifest["kind"] != "Namespace" and not reader.is_readable(kind, name):
            unread.append(objects.reference(manifest))
        elif manifest["kind"] != "Namespace":
            lines += compare.compare_declared(manifest, reader.get(kind, name), around)
    assert not lines, health.message("live objects differ from their declaration", lines, _show(kubectl, lines))
    if unread:
        pytest.skip(f"{len(unread)} of {len(declared)} declared objects are not readable: {', '.join(unread)}")


def test_generated_deployment_is_as_requested(
    reader: StageReader, service: Object, declared_runtime: Object, kubectl: str
) -> None:
    """The Deployment that KServe generates is what the live InferenceService and ServingRuntime request."""
    name = f"{service['metadata']['name']}-predictor"
    deployment, runtime = reader.get("Deployment", name), reader.get("ServingRuntime", drift.runtime_name(service))
    runtime = runtime or declared_runtime
    if deployment is None:  # Knative generates a Deployment per revision, which the next test compares with its pods
        return
    around = compare.surroundings(reader.listed_where_allowed("LimitRange"), [service])
    lines = compare.compare_generated(service, runtime, deployment, around)
    assert not lines, health.message(
        "the generated Deployment is not as requested",
        lines,
        f"{kubectl} get deployment/{name} -o yaml --show-managed-fields",
    )


def test_pods_equal_their_template(reader: StageReader, serving_pods: list[Object], kubectl: str) -> None:
    """Every running pod of a Deployment has the fields of its template and what the platform adds to pods.

    An admission webhook or a LimitRange changes pods only: their Deployment stays as declared.
    """
    around = compare.surroundings(reader.listed_where_allowed("LimitRange"), reader.listed("InferenceService"))
    pairs = [(owner, pod) for owner in reader.listed("ReplicaSet") for pod in objects.owned_by(serving_pods, owner)]
    assert pairs, f"no pod of a Deployment runs\n  next: {kubectl} get deployments,pods"
    lines = [line for owner, pod in pairs for line in compare.compare_pod(owner, pod, around)]
    assert not lines, health.message("pods differ from their template", lines, _show(kubectl, lines))


def test_generated_objects_are_not_changed_by_hand(reader: StageReader, declared: list[Object], kubectl: str) -> None:
    """No person owns a field of an object that a controller generates for the stage.

    The controller may revert the change at any time, or keep it for ever.
    """
    found = [item for kind in GENERATED_KINDS for item in reader.listed_where_allowed(kind)]
    own = members.select_own([*reader.listed("InferenceService"), *found], declared)
    generated = [item for item in members.select_declared(own, []) if item["metadata"].get("managedFields")]
    lines = [line for item in generated for line in compare.find_manual_changes(item)]
    assert not lines, health.message("a generated object was changed by hand", lines, _show(kubectl, lines))


def test_no_undeclared_object_acts_on_the_stage(
    reader: StageReader, declared: list[Object], serving_pods: list[Object], kubectl: str
) -> None:
    """No undeclared policy, quota, autoscaler, Service, workload or model was added since the stage was deployed."""
    services = reader.listed("InferenceService")
    assert services, f"the namespace has no InferenceService\n  next: {kubectl} get inferenceservices"
    found = {kind: reader.listed_where_allowed(kind) for kind in strangers.ACTING_KINDS}
    lines = strangers.find_strangers(found, declared, serving_pods, services)
    assert not lines, health.message("an undeclared object acts on the stage", lines, _show(kubectl, lines))


def _show(kubectl: str, lines: list[str]) -> str:
    """The command that shows the first object that is named, with the managers of its fields."""
    kind, _, name = lines[0].split(" ")[0].rstrip(":").partition("/") if lines else ("pod", "", "")
    return f"{kubectl} get {kind.lower()} {name} -o yaml --show-managed-fields"
