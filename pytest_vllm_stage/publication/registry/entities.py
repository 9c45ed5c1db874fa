"""Models, versions and artifacts by their exact names: found, checked to be the ones asked for, or made.

The list endpoints ignore names and the find endpoints take them as SQL LIKE patterns: what comes back is compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from pytest_vllm_stage.core.errors import ConfigError, StageFailure
from pytest_vllm_stage.publication.registry.client import Entity, RegistryClient
from pytest_vllm_stage.publication.registry.refusals import RegistryRefused

#: A version's name shares 255 characters with its parent's id.
LONGEST_NAME = 240
_LIKE = re.compile(r"[%\\\x00-\x1f]")


def check_name(name: str, what: str) -> str:
    """The name, if the registry can hold and find it.

    Raises:
        ConfigError: saying what about it is wrong.
    """
    if not name or name != name.strip():
        raise ConfigError(f"{what} {name!r}: must not be empty, nor begin or end with a space")
    if len(name) > LONGEST_NAME or _LIKE.search(name):
        raise ConfigError(f"{what} {name!r}: at most {LONGEST_NAME} characters, without % and \\, can be found by name")
    return name


def find_model(registry: RegistryClient, name: str) -> Entity | None:
    """The registered model of exactly this name."""
    found = registry.find("registered_model", name=name)
    if found is not None and found.get("name") == name:
        return found
    return _only(registry.pages("registered_models"), name, "registered model")


def find_version(registry: RegistryClient, model: Entity, name: str) -> Entity | None:
    """The version of exactly this name, of this model and no other."""
    found = registry.find("model_version", name=name, parentResourceId=model["id"])
    if found is not None and found.get("name") == name and found.get("registeredModelId") == model["id"]:
        return found
    return _only(list_versions(registry, model), name, f"version of model {model['name']}")


def list_models(registry: RegistryClient) -> list[Entity]:
    """Every registered model."""
    return list(registry.pages("registered_models"))


def list_versions(registry: RegistryClient, model: Entity) -> list[Entity]:
    """Every version of a model."""
    items = registry.pages(f"registered_models/{model['id']}/versions")
    return [item for item in items if item.get("registeredModelId") == model["id"]]


def list_artifacts(registry: RegistryClient, version: Entity) -> list[Entity]:
    """Every model artifact of a version."""
    items = registry.pages(f"model_versions/{version['id']}/artifacts")
    return [item for item in items if item.get("artifactType") == "model-artifact"]


def _only(items: Iterable[Entity], name: str, what: str) -> Entity | None:
    found = [item for item in items if item.get("name") == name]
    if len(found) > 1:
        raise StageFailure(f"{len(found)} entities are {what} {name!r}: ids {', '.join(str(i['id']) for i in found)}")
    return found[0] if found else None


def ensure_model(registry: RegistryClient, name: str, description: str) -> Entity:
    """The registered model of this name, made if there is none."""
    body = {"name": name, "description": description}
    return _ensure(lambda: find_model(registry, name), registry, "registered_models", body)


def ensure_version(registry: RegistryClient, model: Entity, name: str) -> Entity:
    """The version of this name, made if there is none."""
    body = {"name": name, "registeredModelId": model["id"], "state": "LIVE"}
    return _ensure(lambda: find_version(registry, model, name), registry, "model_versions", body)


def ensure_artifact(registry: RegistryClient, version: Entity, name: str, uri: str) -> Entity:
    """The version's model artifact with this URI, made under ``name`` if there is none.

    Raises:
        StageFailure: the name is taken by an artifact with another URI.
    """

    def find() -> Entity | None:
        there = list_artifacts(registry, version)
        taken = next((item for item in there if item.get("name") == name and item.get("uri") != uri), None)
        if taken is not None:
            raise StageFailure(
                f"version {version['name']} is registered with the weights {taken.get('uri')}, and the service loads "
                f"{uri}: other weights are another version"
            )
        return next((item for item in there if item.get("uri") == uri), None)

    body = {"artifactType": "model-artifact", "name": name, "uri": uri, "state": "LIVE", "modelFormatName": "vLLM"}
    return _ensure(find, registry, f"model_versions/{version['id']}/artifacts", body)


def _ensure(find: Callable[[], Entity | None], registry: RegistryClient, path: str, body: Entity) -> Entity:
    found = find()
    if found is not None:
        return found
    try:
        made = registry.post(path, body)
    except RegistryRefused as error:
        if error.code != 409:
            raise
        found = find()  # another process was faster
        if found is None:
            text = f"{body['name']!r} is taken at {path} by a name that some databases hold to be the same"
            raise StageFailure(f"{text}: {error.message}") from None
        return found
    if made.get("name") != body["name"]:
        raise StageFailure(f"the registry made {made.get('name')!r} at {path} where {body['name']!r} was asked for")
    return made
