"""Model, version and artifact are registered and belong to the measured service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_stage import does_not_apply
from pytest_vllm_stage.publication import links, publishing
from pytest_vllm_stage.publication.registry import entities
from pytest_vllm_stage.stage.observe import health

if TYPE_CHECKING:
    from pytest_vllm_stage import RegistryClient
    from suites.registry.conftest import Filed

    Object = dict[str, Any]

pytestmark = pytest.mark.after_load


def test_model_and_version_are_registered(filed: Filed, registry_client: RegistryClient) -> None:
    """Model and version exist under exactly the names in the service's labels, once, and are not archived.

    Each is looked up by name and compared: the registry's lists ignore names, and its searches treat them as patterns.
    A second one, whose name differs in case or separators alone, is what people and other pipelines publish to.
    """
    lines = publishing.find_archived(filed.model, filed.version)
    versions = entities.list_versions(registry_client, filed.model)
    lines += links.find_lookalikes("model", entities.list_models(registry_client), filed.model)
    lines += links.find_lookalikes("version", versions, filed.version)
    if filed.version["registeredModelId"] != filed.model["id"]:
        lines.append(f"version {filed.version['name']} belongs to model id {filed.version['registeredModelId']}")
    assert not lines, "\n".join(lines)


def test_labels_and_ids_agree(filed: Filed, service: Object) -> None:
    """Every label of the service with a model, version or id of the registry names the registered ones.

    Where they differ, clients that read by label and clients that read by id see different models. A property
    ``quantization`` names the version's method: the value "true" distinguishes no two versions.
    """
    lines = links.find_disagreements(service, filed.model, filed.version)
    lines += links.find_wrong_descriptions(filed.model, filed.version)
    assert not lines, health.message("the service and the registry do not agree", lines, "kubectl get isvc -o yaml")


def test_artifact_uri_is_the_one_the_service_loads(
    filed: Filed, service: Object, registry_client: RegistryClient
) -> None:
    """The version has a live model artifact with the URI from which the service loads the model, and no rival of it."""
    uri = publishing.weights_uri(service)
    if not uri:
        does_not_apply(
            f"inferenceservice/{service['metadata']['name']} has no storageUri: its weights are in the image"
        )
    found = entities.list_artifacts(registry_client, filed.version)
    seen = ", ".join(f"{item.get('name')}: {item.get('uri')} ({item.get('state', 'no state')})" for item in found)
    live = [item for item in found if item.get("uri") == uri and item.get("state", "LIVE") in ("LIVE", "UNKNOWN")]
    assert live, (
        f"version {filed.version['name']}: expected a live model artifact with the URI {uri}, which the service "
        f"loads; got {seen or 'none'}"
    )
    rivals = links.find_rival_artifacts(found, uri)
    assert not rivals, (
        f"version {filed.version['name']}: the service loads {uri}, and clients that take another live artifact load "
        f"{', '.join(rivals)}\n  next: set the state of what is not used to ABANDONED"
    )


def test_no_other_version_claims_this_revision(
    filed: Filed, registry_client: RegistryClient, service: Object, running: Any
) -> None:
    """Only the service's version has results of the running revision.

    With one revision under two version names the numbers of a quantized model could be read as the full model's.
    """
    name = service["metadata"]["name"]
    versions = entities.list_versions(registry_client, filed.model)
    lines = links.find_duplicate_results(versions, filed.version["name"], name, running.name)
    assert not lines, "\n".join(lines)
