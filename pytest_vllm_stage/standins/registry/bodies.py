"""What requests give and answers show: between JSON bodies and entities."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pytest_vllm_stage.standins.registry.kinds import ARTIFACTS, Field, Kind, Type
from pytest_vllm_stage.standins.registry.refusal import Refusal, bad_request, missing
from pytest_vllm_stage.standins.registry.store import Entity
from pytest_vllm_stage.standins.registry.values import (
    INT64_MAX,
    INT64_MIN,
    RESERVED_KEYS,
    Stored,
    id_of,
    integer,
    is_poison,
    number_of,
    shown_number,
    shown_property,
    stored_property,
)


class Mode(Enum):
    """What a body may hold: a new entity, changes to one, or a whole one as an answer shows it."""

    CREATE = 1
    UPDATE = 2
    WHOLE = 3


_ALWAYS = ("customProperties", "externalId")
_WHOLE = ("id", "createTimeSinceEpoch", "lastUpdateTimeSinceEpoch")
_WHOLE_ARTIFACT = ("experimentId", "experimentRunId")


@dataclass
class Given:
    """What a request gives; what is absent or null is None or not there.

    Attributes:
        properties: Custom properties; None where they are not given, so that they stay.
    """

    id: str | None = None
    name: str | None = None
    external_id: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    properties: dict[str, Stored] | None = None


def read(body: dict[str, Any], kind: Kind, mode: Mode, *, strict: bool = True) -> Given:
    """Read a request's body.

    Args:
        body: The JSON object.
        kind: What it is to be.
        mode: What it may hold.
        strict: An unknown field is an error, instead of being dropped.

    Raises:
        Refusal: A field is unknown, of the wrong type, or missing.
    """
    allowed = _allowed(kind, mode)
    unknown = sorted(set(body) - allowed)
    if unknown and strict:
        raise bad_request(f'json: unknown field "{unknown[0]}"')
    given = {name: value for name, value in body.items() if name in allowed and value is not None}
    result = Given(
        _text(given, "id"),
        _text(given, "name"),
        _text(given, "externalId"),
        {item.name: _value(item, given[item.name]) for item in kind.fields if item.name in given},
        _properties(given.get("customProperties")),
    )
    for name in (*_WHOLE, *_WHOLE_ARTIFACT):
        _text(given, name)
    if kind.artifact_type and given.get("artifactType", kind.artifact_type) != kind.artifact_type:
        raise bad_request(f"artifactType must be {kind.artifact_type!r}")
    if mode is not Mode.UPDATE:
        _check_required(result, kind)
    return result


def _allowed(kind: Kind, mode: Mode) -> set[str]:
    allowed = {*_ALWAYS, *(item.name for item in kind.fields if mode is not Mode.UPDATE or not item.fixed)}
    if mode is not Mode.UPDATE:
        allowed.add("name")
    if mode is Mode.WHOLE:
        allowed.update(_WHOLE)
    if kind.artifact_type:
        allowed.update(("artifactType", *(_WHOLE_ARTIFACT if mode is Mode.WHOLE else ())))
    return allowed


def _text(given: dict[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise bad_request(f"{name} must be a JSON string")
    return value


def _value(item: Field, value: Any) -> Any:
    """A field's value as it is stored: ids and integers as numbers, so that they can be compared."""
    if item.type is Type.NUMBER:
        return number_of(value, item.name)
    if item.type is Type.TEXTS:
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise bad_request(f"{item.name} must be a list of JSON strings")
        return value
    if not isinstance(value, str):
        raise bad_request(f"{item.name} must be a JSON string")
    if item.values and value not in item.values:
        raise bad_request(f"invalid {item.name} {value[:40]!r}; valid: {', '.join(item.values)}")
    if item.type is Type.ID:
        # An empty required id is missing, which is another error.
        return value if item.required and not value else id_of(value, item.name)
    if item.type is Type.INTEGER_TEXT:
        number = integer(value, INT64_MIN, INT64_MAX)
        if number is None:
            raise bad_request(f"{item.name} must be an integer as a string")
        return number
    return value


def _properties(given: Any) -> dict[str, Stored] | None:
    if given is None:
        return None
    if not isinstance(given, dict):
        raise bad_request("customProperties must be a JSON object")
    return {key: stored_property(key, value) for key, value in given.items()}


def _check_required(given: Given, kind: Kind) -> None:
    if kind.named and not given.name:
        raise missing("name")
    for item in kind.fields:
        if item.required and given.fields.get(item.name, "") == "":
            raise missing(item.name)


def artifact_kind(body: dict[str, Any]) -> Kind:
    """The kind that an artifact's body names.

    Raises:
        Refusal: It names none, or an unknown one.
    """
    name = body.get("artifactType")
    kind = ARTIFACTS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise bad_request(f"artifactType must be one of {', '.join(ARTIFACTS)}")
    return kind


def change(entity: Entity, given: Given) -> None:
    """Put what is given over an entity: fields merge, custom properties are replaced as a whole."""
    fixed = {item.name for item in entity.kind.fields if item.fixed}
    entity.fields |= {name: value for name, value in given.fields.items() if name not in fixed}
    if given.external_id is not None:
        entity.external_id = given.external_id
    if given.properties is not None:
        entity.properties = given.properties


def shown(entity: Entity) -> dict[str, Any]:
    """An entity as answers show it; unset fields are absent.

    Raises:
        Refusal: A property cannot be read back.
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
            key: shown_property(stored) for key, stored in entity.properties.items() if key not in RESERVED_KEYS
        },
    }
    if entity.external_id is not None:
        body["externalId"] = entity.external_id
    if entity.kind.artifact_type:
        body["artifactType"] = entity.kind.artifact_type
    for item in entity.kind.fields:
        if item.name in entity.fields:
            body[item.name] = _shown_value(item, entity.fields[item.name])
    return body


def _shown_value(item: Field, value: Any) -> Any:
    if item.type is Type.NUMBER:
        return shown_number(value)
    return str(value) if item.type in (Type.ID, Type.INTEGER_TEXT) else value


def unreadable(entity: Entity, key: str) -> Refusal:
    """The entity is poisoned."""
    return bad_request(f"{entity.kind.name} {entity.id}: failed to decode struct property {key!r}")
