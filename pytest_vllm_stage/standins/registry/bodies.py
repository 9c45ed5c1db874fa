"""What requests give and answers show: between JSON bodies and entities."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pytest_vllm_stage.standins.registry.kinds import ARTIFACTS, Field, Kind, Type
from pytest_vllm_stage.standins.registry.refusal import RegistryRefusal, bad_request, missing
from pytest_vllm_stage.standins.registry.store import Entity
from pytest_vllm_stage.standins.registry.values import (
    RESERVED_KEYS,
    Stored,
    format_property,
    is_poison,
    parse_id,
    parse_property,
)


class Mode(Enum):
    """What a body may hold: a new entity, changes to one, or a whole one as an answer shows it."""

    CREATE = 1
    UPDATE = 2
    WHOLE = 3


_ALWAYS = ("customProperties", "externalId")
_WHOLE = ("id", "createTimeSinceEpoch", "lastUpdateTimeSinceEpoch")


@dataclass
class Given:
    """What a request gives; what is absent or null is None or left out.

    Attributes:
        properties: Custom properties; None where they are not given, so that they stay.
    """

    id: str | None = None
    name: str | None = None
    external_id: str | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    properties: dict[str, Stored] | None = None


def read(body: dict[str, Any], kind: Kind, mode: Mode) -> Given:
    """Read a request's body; unknown fields are an error, except in a whole artifact, where they are dropped.

    Args:
        body: The JSON object.
        kind: The kind of the entity.
        mode: What the body may hold.

    Raises:
        RegistryRefusal: A field is unknown, of the wrong type, or missing.
    """
    allowed = _allowed(kind, mode)
    unknown = sorted(set(body) - allowed)
    if unknown and mode is not Mode.WHOLE:
        raise bad_request(f'json: unknown field "{unknown[0]}"')
    given = {name: value for name, value in body.items() if name in allowed and value is not None}
    result = Given(
        _text(given, "id"),
        _text(given, "name"),
        _text(given, "externalId"),
        {field.name: _value(field, given[field.name]) for field in kind.fields if field.name in given},
        _properties(given.get("customProperties")),
    )
    for name in _WHOLE:
        _text(given, name)
    if kind.artifact_type and given.get("artifactType", kind.artifact_type) != kind.artifact_type:
        raise bad_request(f"artifactType must be {kind.artifact_type!r}")
    if mode is not Mode.UPDATE:
        _check_required(result, kind)
    return result


def _allowed(kind: Kind, mode: Mode) -> set[str]:
    allowed = {*_ALWAYS, *(field.name for field in kind.fields if mode is not Mode.UPDATE or not field.required)}
    if mode is not Mode.UPDATE:
        allowed.add("name")
    if mode is Mode.WHOLE:
        allowed.update(_WHOLE)
    if kind.artifact_type:
        allowed.add("artifactType")
    return allowed


def _text(given: dict[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise bad_request(f"{name} must be a JSON string")
    return value


def _value(field: Field, value: Any) -> Any:
    """A field's value as it is stored: ids as numbers."""
    if field.type is Type.TEXTS:
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise bad_request(f"{field.name} must be a list of JSON strings")
        return value
    if not isinstance(value, str):
        raise bad_request(f"{field.name} must be a JSON string")
    if field.values and value not in field.values:
        raise bad_request(f"invalid {field.name} {value[:40]!r}; valid: {', '.join(field.values)}")
    # An empty id is missing, which is another error.
    return parse_id(value, field.name) if field.type is Type.ID and value else value


def _properties(given: Any) -> dict[str, Stored] | None:
    if given is None:
        return None
    if not isinstance(given, dict):
        raise bad_request("customProperties must be a JSON object")
    return {key: parse_property(key, value) for key, value in given.items()}


def _check_required(given: Given, kind: Kind) -> None:
    if not kind.artifact_type and not given.name:
        raise missing("name")
    for field in kind.fields:
        if field.required and given.fields.get(field.name, "") == "":
            raise missing(field.name)


def artifact_kind(body: dict[str, Any]) -> Kind:
    """The kind that an artifact's body names.

    Raises:
        RegistryRefusal: It names none, or an unknown one.
    """
    name = body.get("artifactType")
    kind = ARTIFACTS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise bad_request(f"artifactType must be one of {', '.join(ARTIFACTS)}")
    return kind


def change(entity: Entity, given: Given) -> None:
    """Put what is given over an entity: fields merge, custom properties are replaced as a whole."""
    fixed = {field.name for field in entity.kind.fields if field.required}
    entity.fields |= {name: value for name, value in given.fields.items() if name not in fixed}
    if given.external_id is not None:
        entity.external_id = given.external_id
    if given.properties is not None:
        entity.properties = given.properties


def format_entity(entity: Entity) -> dict[str, Any]:
    """An entity as answers show it; unset fields are absent.

    Raises:
        RegistryRefusal: A property cannot be read back.
    """
    poisoned = sorted(key for key, stored in entity.properties.items() if is_poison(stored))
    if poisoned:
        raise unreadable(entity, poisoned[0])
    body: dict[str, Any] = {
        "id": str(entity.id),
        "name": entity.name,
        "createTimeSinceEpoch": str(entity.created_ms),
        "lastUpdateTimeSinceEpoch": str(entity.updated_ms),
        "customProperties": {
            key: format_property(stored) for key, stored in entity.properties.items() if key not in RESERVED_KEYS
        },
    }
    if entity.external_id is not None:
        body["externalId"] = entity.external_id
    if entity.kind.artifact_type:
        body["artifactType"] = entity.kind.artifact_type
    for field in entity.kind.fields:
        if field.name in entity.fields:
            value = entity.fields[field.name]
            body[field.name] = str(value) if field.type is Type.ID else value
    return body


def unreadable(entity: Entity, key: str) -> RegistryRefusal:
    """The entity is poisoned."""
    return bad_request(f"{entity.kind.name} {entity.id}: failed to decode struct property {key!r}")
