"""The model and version under which an InferenceService's results are filed, and whether labels and ids agree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_vllm_stage.core.errors import ConfigError, StageFailure
from pytest_vllm_stage.publication import properties as names
from pytest_vllm_stage.publication.registry.client import Entity
from pytest_vllm_stage.publication.registry.entities import check_name
from pytest_vllm_stage.publication.registry.values import text_of
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.drift import MODEL_LABEL, VERSION_LABEL
from pytest_vllm_stage.stage.objects import Object

#: Endings of labels that link a service to the registry, whatever their domain: the entity and its field.
_LINKS = (
    ("/registered-model-id", "model", "id"),
    ("/model-version-id", "version", "id"),
    (MODEL_LABEL, "model", "name"),
    (VERSION_LABEL, "version", "name"),
)


_YES, _NO = ("true", "yes", "1"), ("false", "no", "0", "none")
_UNQUANTIZED_BITS = 16
#: Schemes as vLLM and compressed-tensors name them: W4A16, int8, fp8, nf4; and the types of whole weights.
_SCHEME = re.compile(r"\b(?:w|u?int|fp|nf)(?P<bits>4|8)(?:a\d+)?\b|\b(?:bf16|fp16|bfloat16|float16)\b")


#: What people write between the words of a name.
_SEPARATORS = re.compile(r"[\s_.-]+")


@dataclass(frozen=True)
class RegisteredNames:
    """Where results are filed.

    Attributes:
        model: The registered model's name.
        version: Its version's name.
    """

    model: str
    version: str


def resolve_names(service: Object, model: str = "", version: str = "") -> RegisteredNames:
    """The names in the service's labels, which must agree with the profile's where it sets any.

    Args:
        service: The InferenceService.
        model: The model's name in the profile; empty where it sets none.
        version: The version's name in the profile; empty where it sets none.

    Raises:
        ConfigError: neither sets a name, or the name cannot be registered.
        StageFailure: they differ.
    """
    labels = service["metadata"].get("labels") or {}
    found = []
    for label, said, what in ((MODEL_LABEL, model, "model"), (VERSION_LABEL, version, "version")):
        labelled = str(labels.get(label) or "")
        where = f"inferenceservice/{objects.name_of(service)}"
        if said and labelled and said != labelled:
            raise StageFailure(
                f"{where} is labelled {label}={labelled}, and the profile says that its {what} is {said!r} in the "
                "registry: the numbers would be published for the wrong one"
            )
        if not said and not labelled:
            raise ConfigError(f"{where} has no label {label}, and the profile's [registry.models] names no {what}")
        found.append(check_name(said or labelled, f"{what} name of {where}"))
    return RegisteredNames(*found)


def find_disagreements(service: Object, model: Entity, version: Entity) -> list[str]:
    """Labels of an InferenceService that name other entities than the ones that its results are filed under."""
    entities = {"model": model, "version": version}
    return [
        f"inferenceservice/{objects.name_of(service)}: label {label} is {value!r}, and {kind} "
        f"{entities[kind]['name']} of the registry has the {field} {entities[kind][field]!r}"
        for label, value in (service["metadata"].get("labels") or {}).items()
        for ending, kind, field in _LINKS
        if label.endswith(ending) and value != entities[kind][field]
    ]


def find_wrong_descriptions(model: Entity, version: Entity) -> list[str]:
    """Properties by which clients distinguish quantized versions, and which name no method, or another one."""
    return [
        f"{kind} {entity['name']} has the property {name} with the value {value!r}, expected the method of version "
        f"{version['name']}"
        for kind, entity in (("model", model), ("version", version))
        for name, value in _read_quantizations(entity)
        # A model may have versions of several methods.
        if value.lower() in _YES or (kind == "version" and _contradicts(value, str(version["name"])))
    ]


def find_lookalikes(kind: str, entities: Sequence[Entity], own: Entity) -> list[str]:
    """Live entities whose names differ from one in case or separators alone: a reader takes one for the other.

    A registry may be shared: what names another owner is not the stage's to archive.
    """
    name, advice = str(own["name"]), "archive the one that is not used"
    return [
        f"{kind} {entity['name']!r} (id {entity['id']}) is registered besides {name!r}: {advice}"
        for entity in entities
        if entity["name"] != name
        and entity.get("state", "LIVE") == "LIVE"
        and entity.get("owner") in (None, "", own.get("owner"))
        and _simplified(str(entity["name"])) == _simplified(name)
    ]


def _simplified(name: str) -> str:
    """A name without what people write in several ways; 1.0 and 10 stay two."""
    return _SEPARATORS.sub("-", name.strip()).casefold()


def find_rival_artifacts(artifacts: Sequence[Entity], uri: str) -> list[str]:
    """Live artifacts of a version with other weights than those that the service loads, in a store of the same kind.

    One model may be kept in several kinds of stores, as objects and as an image. Of two in one kind of store a client
    that takes the first may load either.
    """
    scheme = uri.partition("://")[0]
    return [
        f"{item.get('name')}: {item.get('uri')}"
        for item in artifacts
        if item.get("uri") != uri
        and str(item.get("uri") or "").partition("://")[0] == scheme
        and item.get("state", "LIVE") == "LIVE"
    ]


def _contradicts(value: str, version: str) -> bool:
    """Whether a method and a version's name mean weights of another size."""
    named, given = _weight_bits(version), {_UNQUANTIZED_BITS} if value.lower() in _NO else _weight_bits(value)
    return bool(named and given) and not named & given


def _read_quantizations(entity: Entity) -> Iterator[tuple[str, str]]:
    for name, raw in _properties(entity).items():
        if name.lower() in ("quantization", "quantisation", "quantization_method"):
            yield name, str(raw.get("string_value", raw.get("bool_value", ""))).strip()


def _weight_bits(text: str) -> set[int]:
    """How many bits a weight has, by the schemes and types that a text names; empty where it names none."""
    return {
        int(match["bits"]) if match["bits"] else _UNQUANTIZED_BITS
        for match in _SCHEME.finditer(text.lower().replace("_", "-"))
    }


def find_duplicate_results(versions: Sequence[Entity], own: str, service: str, revision: str) -> list[str]:
    """Other versions that hold results of the same revision of the service, one line each."""
    return [
        f"version {version['name']!r} of the model holds results of inferenceservice/{service} revision {revision} "
        f"(run {text_of(properties, names.RUN)}), and the service's version is {own!r}"
        for version in versions
        if version["name"] != own
        and (properties := _properties(version))
        and (text_of(properties, names.SERVICE), text_of(properties, names.REVISION)) == (service, revision)
    ]


def _properties(version: Entity) -> Mapping[str, Mapping[str, object]]:
    return dict(version.get("customProperties") or {})
