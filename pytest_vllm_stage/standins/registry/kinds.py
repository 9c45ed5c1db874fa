"""What the registry holds: the kinds of entities, their fields, and where their names must be unique."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

ARTIFACT_STATES = ("UNKNOWN", "PENDING", "LIVE", "MARKED_FOR_DELETION", "DELETED", "ABANDONED", "REFERENCE")
MODEL_STATES = ("LIVE", "ARCHIVED")

#: The longest name, external id and property key, in characters: the database's columns.
MAX_NAME = 255


class Space(StrEnum):
    """What shares one sequence of ids, and one set of external ids."""

    CONTEXT = "context"
    ARTIFACT = "artifact"


class Type(StrEnum):
    """A field's JSON type."""

    TEXT = "text"
    TEXTS = "texts"
    ID = "id"


@dataclass(frozen=True)
class Field:
    """One field of a kind.

    Attributes:
        name: Its JSON name.
        type: Its JSON type.
        values: The valid values, where they are few.
        required: It must be given and not be empty when an entity is created, and cannot be patched.
    """

    name: str
    type: Type = Type.TEXT
    values: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of entities.

    Attributes:
        name: Its name in errors.
        space: The space of its ids.
        fields: Its fields, without those that every kind has.
        state: The default of its field ``state``, if it has one.
        artifact_type: The ``artifactType`` of an artifact.
        parent: The field that holds the parent's id, where it is one.
    """

    name: str
    space: Space
    fields: tuple[Field, ...]
    state: str = ""
    artifact_type: str = ""
    parent: str = ""

    @property
    def prefixed(self) -> bool:
        """Names are stored as ``<parent>:<name>``."""
        return bool(self.parent) or self.space is Space.ARTIFACT


def _texts(*names: str) -> tuple[Field, ...]:
    return tuple(map(Field, names))


REGISTERED_MODEL = Kind(
    "registered model",
    Space.CONTEXT,
    (
        Field("state", values=MODEL_STATES),
        Field("language", Type.TEXTS),
        Field("tasks", Type.TEXTS),
        *_texts("description", "owner", "readme", "maturity", "provider", "logo", "license", "licenseLink"),
        *_texts("libraryName"),
    ),
    state="LIVE",
)
MODEL_VERSION = Kind(
    "model version",
    Space.CONTEXT,
    (
        Field("state", values=MODEL_STATES),
        Field("registeredModelId", Type.ID, required=True),
        *_texts("description", "author"),
    ),
    state="LIVE",
    parent="registeredModelId",
)
MODEL_ARTIFACT = Kind(
    "model artifact",
    Space.ARTIFACT,
    (
        Field("state", values=ARTIFACT_STATES),
        *_texts("description", "uri", "modelFormatName", "modelFormatVersion", "storageKey", "storagePath"),
        *_texts("serviceAccountName", "modelSourceKind", "modelSourceClass", "modelSourceGroup", "modelSourceId"),
        *_texts("modelSourceName"),
    ),
    artifact_type="model-artifact",
)
DOC_ARTIFACT = Kind(
    "doc artifact",
    Space.ARTIFACT,
    (Field("state", values=ARTIFACT_STATES), *_texts("description", "uri")),
    artifact_type="doc-artifact",
)

ARTIFACTS = {kind.artifact_type: kind for kind in (MODEL_ARTIFACT, DOC_ARTIFACT)}
KINDS = {kind.name: kind for kind in (REGISTERED_MODEL, MODEL_VERSION, *ARTIFACTS.values())}
