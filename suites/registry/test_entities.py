"""Are model, version and artifact registered, and do they belong to the service that was measured?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_stage.publication import links, publishing
from pytest_vllm_stage.publication.registry import entities
from pytest_vllm_stage.stage.observe import health

if TYPE_CHECKING:
    from pytest_vllm_stage import RegistryClient
    from suites.registry.conftest import Filed

    Object = dict[str, Any]

pytestmark = pytest.mark.after_load


def test_model_and_version_are_registered(filed: Filed) -> None:
    """Model and version exist under exactly the names that the service's labels say, and are in use.

    Found by name one at a time and compared: the registry's lists ignore names, and its finds take them as patterns.
    """
    lines = publishing.find_archived(filed.model, filed.version)
    if filed.version["registeredModelId"] != filed.model["id"]:
        lines.append(f"version {filed.version['name']} belongs to model id {filed.version['registeredModelId']}")
    assert not lines, "\n".join(lines)


def test_labels_and_ids_agree(filed: Filed, service: Object) -> None:
    """Every label of the service that names a model, a version or an id of the registry names the ones found there.

    Where they differ, what reads by label and what reads by id speak of different models.
    """
    lines = links.find_disagreements(service, filed.model, filed.version)
    assert not lines, health.message("the service and the registry do not agree", lines, "kubectl get isvc -o yaml")


def test_artifact_is_the_weights_that_are_served(
    filed: Filed, service: Object, registry_client: RegistryClient
) -> None:
    """The version has a model artifact in use, and its URI is where the service loads the model from."""
    uri = publishing.weights_uri(service)
    if not uri:
        pytest.skip(f"inferenceservice/{service['metadata']['name']} has no storageUri: its weights are in the image")
    found = entities.list_artifacts(registry_client, filed.version)
    seen = ", ".join(f"{item.get('name')}: {item.get('uri')} ({item.get('state', 'no state')})" for item in found)
    live = [item for item in found if item.get("uri") == uri and item.get("state", "LIVE") in ("LIVE", "UNKNOWN")]
    assert live, (
        f"version {filed.version['name']} has no model artifact in use with the URI {uri}, which the service loads; "
        f"it has {seen or 'none'}"
    )


def test_no_other_version_claims_this_revision(
    filed: Filed, registry_client: RegistryClient, service: Object, running: Any
) -> None:
    """Results of the running revision are on the service's version alone.

    One revision under two version names is how the numbers of a quantized model end up with the full one.
    """
    name = service["metadata"]["name"]
    versions = entities.list_versions(registry_client, filed.model)
    lines = links.find_duplicate_results(versions, filed.version["name"], name, running.name)
    assert not lines, "\n".join(lines)
