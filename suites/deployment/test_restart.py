"""Would the stage come back after a restart? States that are fine now and break when a pod is replaced."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_stage.checks.stage import (
    admission,
    certificates,
    images,
    members,
    pod_security,
    restart,
    service_targets,
)
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.observe import health

if TYPE_CHECKING:
    from pytest_vllm_stage import StageReader

    Object = dict[str, Any]

#: Kinds whose deletion ends the stage, or takes effect when a pod restarts.
LASTING_KINDS = (
    "InferenceService",
    "ServingRuntime",
    "Deployment",
    "Service",
    "PersistentVolumeClaim",
    "Secret",
    "ConfigMap",
    "ServiceAccount",
)


def test_nothing_is_being_deleted(reader: StageReader, declared: list[Object], kubectl: str) -> None:
    """No object of the stage is marked for deletion, its namespace and volumes included.

    A finalizer keeps such an object while a pod uses it: it disappears when the pod restarts.
    """
    live = [item for kind in LASTING_KINDS for item in reader.listed_where_allowed(kind)]
    mine = members.select_own(live, declared)
    volumes = {item["spec"].get("volumeName") for item in mine if item["kind"] == "PersistentVolumeClaim"}
    mine += [item for item in reader.everywhere("PersistentVolume") if objects.name_of(item) in volumes]
    namespace = reader.get_where_allowed("Namespace", reader.namespace)
    lines = restart.check_deletions([*mine, *([namespace] if namespace else [])])
    assert not lines, health.message("an object of the stage is being deleted", lines, f"{kubectl} get events")


def test_nodes_take_replacement_pods(reader: StageReader, serving_pods: list[Object], kubectl: str) -> None:
    """The nodes of the stage's pods are Ready and without pressure, and some node accepts a replacement of each pod.

    A replacement meets taints, labels, free GPUs and the zone of its volume as they are now.
    """
    placement = reader.placement()
    if not placement.nodes:
        pytest.skip("nodes are cluster-wide, and this user may not list them")
    lines = restart.check_nodes(serving_pods, placement)
    assert not lines, health.message("a replaced pod finds no healthy node", lines, f"{kubectl} describe nodes")


def test_services_select_ready_pods(
    reader: StageReader, serving_pods: list[Object], declared: list[Object], kubectl: str
) -> None:
    """Each declared Service, and each of a model, selects a Ready pod that has the Service's target port.

    A changed selector or label cuts clients off while every pod is Ready.
    """
    services = members.select_services(reader.listed("Service"), declared)
    lines = service_targets.check_services(services, serving_pods)
    assert not lines, health.message("a Service leads nowhere", lines, f"{kubectl} get endpoints,pods --show-labels")


def test_quotas_admit_replacement_pods(reader: StageReader, serving_pods: list[Object], kubectl: str) -> None:
    """No quota, limit range or pod security level of the namespace would refuse a replacement of a running pod.

    Nor does the webhook of a controller that is not Ready.
    """
    quotas = reader.listed_where_allowed("ResourceQuota")
    lines = admission.check_quotas(quotas, reader.listed_where_allowed("LimitRange"), serving_pods)
    namespace = reader.get_where_allowed("Namespace", reader.namespace)
    lines += pod_security.check_level(namespace, serving_pods) if namespace else []
    lines += admission.check_controllers(reader.everywhere("Pod"))
    command = f"{kubectl} describe quota,limits,namespace/{reader.namespace}"
    assert not lines, health.message("a replaced pod is not admitted", lines, command)


def test_pods_run_with_current_secrets(reader: StageReader, serving_pods: list[Object], kubectl: str) -> None:
    """What a pod read from a Secret or ConfigMap at its start still exists and has not changed since.

    A changed key takes effect at the next restart, when clients and server may no longer agree.
    """
    live = {
        kind: {objects.name_of(item): item for item in found}
        for kind in ("Secret", "ConfigMap", "ServiceAccount")
        if (found := reader.listed_where_allowed(kind))
    }
    lines = restart.check_references(serving_pods, live)
    assert not lines, health.message("pods run with outdated inputs", lines, f"{kubectl} get pods,secrets,configmaps")


def test_images_are_there_for_replacement_pods(reader: StageReader, serving_pods: list[Object], kubectl: str) -> None:
    """Each image is still on the node that runs it, no other pod fails to pull it, and the pull secrets exist.

    A pod runs on after its image or the secret for its registry is gone, until it is replaced.
    """
    secrets = {objects.name_of(item): item for item in reader.listed_where_allowed("Secret")}
    lines = images.check_node_images(serving_pods, reader.placement().nodes)
    lines += images.check_pulls(serving_pods, reader.listed("Pod"))
    lines += images.check_pull_secrets(serving_pods, secrets) if secrets else []
    assert not lines, health.message("a replaced pod finds no image", lines, f"{kubectl} get events,pods")


def test_certificates_do_not_expire_soon(reader: StageReader, kubectl: str) -> None:
    """No certificate in a TLS Secret of the namespace has expired or expires within a week."""
    now = datetime.datetime.now(datetime.UTC)
    lines = certificates.check_secrets(reader.listed_where_allowed("Secret"), now)
    assert not lines, health.message("a certificate needs renewal", lines, f"{kubectl} get secrets")
