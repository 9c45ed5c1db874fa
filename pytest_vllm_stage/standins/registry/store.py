"""The entities in SQLite: one table for all kinds, one for their custom properties, one for the sequences of ids.

A store belongs to one thread; it alone writes, so that what it looks up stays true until it has written.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pytest_vllm_stage.standins.registry.kinds import KINDS, MAX_NAME, Kind, Space
from pytest_vllm_stage.standins.registry.refusal import RegistryRefusal, database_error
from pytest_vllm_stage.standins.registry.values import VALUE_KEYS, Stored

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sequence (space TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entity (
    space TEXT NOT NULL,
    id INTEGER NOT NULL,
    kind TEXT NOT NULL,
    stored_name TEXT NOT NULL,
    parent_id INTEGER,
    external_id TEXT,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    fields TEXT NOT NULL,
    PRIMARY KEY (space, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entity_by_name ON entity (kind, stored_name);
CREATE INDEX IF NOT EXISTS entity_by_parent ON entity (kind, parent_id);
CREATE INDEX IF NOT EXISTS entity_by_external_id ON entity (space, external_id);
CREATE TABLE IF NOT EXISTS property (
    space TEXT NOT NULL,
    entity_id INTEGER NOT NULL,
    key TEXT NOT NULL,
    string_value TEXT,
    int_value INTEGER,
    double_value REAL,
    bool_value INTEGER,
    PRIMARY KEY (space, entity_id, key)
) WITHOUT ROWID;
"""
_COLUMNS = tuple(VALUE_KEYS.values())
_ENTITY = "id, kind, stored_name, parent_id, external_id, created_ms, updated_ms, fields"


@dataclass(frozen=True)
class Clause:
    """A piece of a WHERE and its parameters."""

    sql: str
    parameters: Sequence[Any] = ()

    def __and__(self, other: Clause) -> Clause:
        return Clause(f"{self.sql} AND {other.sql}", [*self.parameters, *other.parameters])


@dataclass
class Entity:
    """One row of the registry.

    Attributes:
        stored_name: Behind the parent's id and a colon where names are per parent.
        properties: Custom properties by key.
    """

    kind: Kind
    stored_name: str
    parent_id: int | None = None
    external_id: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    properties: dict[str, Stored] = field(default_factory=dict)
    id: int = 0
    created_ms: int = 0
    updated_ms: int = 0

    @property
    def name(self) -> str:
        """The name as it was given."""
        return self.stored_name.partition(":")[2] if self.kind.prefixed else self.stored_name


class Store:
    """Entities in a database file, or in memory as ``:memory:``."""

    def __init__(self, database: str) -> None:
        self._database = sqlite3.connect(database, isolation_level=None)
        # Readers of the file never see half a write, and a commit need not wait for the disk: nothing is kept for good.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        # PostgreSQL's LIKE counts case.
        self._database.execute("PRAGMA case_sensitive_like = ON")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        self._database.close()

    def clear(self) -> None:
        """Delete everything, the sequences too."""
        with self.transaction():
            for table in ("entity", "property", "sequence"):
                self._database.execute(f"DELETE FROM {table}")  # noqa: S608 - the names stand above

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def insert(self, entity: Entity) -> Entity:
        """Add an entity, with its id and times. A refused one has used up its id, as in the real database.

        Raises:
            RegistryRefusal: A name or external id is taken, or something is too long.
        """
        entity.id = self._next_id(entity.kind.space)
        entity.created_ms = entity.updated_ms = _now_ms()
        with self.transaction():
            self._check(entity)
            marks = ",".join("?" * 9)
            self._database.execute(
                f"INSERT INTO entity (space, {_ENTITY}) VALUES ({marks})",  # noqa: S608 - columns named above
                (entity.kind.space, entity.id, entity.kind.name, *self._row(entity), entity.created_ms,
                 entity.updated_ms, _text(entity.fields)),
            )  # fmt: skip
            self._write_properties(entity)
        return entity

    def update(self, entity: Entity) -> Entity:
        """Write an entity again; the time of its update moves on, by a millisecond at least.

        Raises:
            RegistryRefusal: The external id is taken, or something is too long.
        """
        entity.updated_ms = max(_now_ms(), entity.updated_ms + 1)
        with self.transaction():
            self._check(entity)
            self._database.execute(
                "UPDATE entity SET stored_name = ?, parent_id = ?, external_id = ?, updated_ms = ?, fields = ?"
                " WHERE space = ? AND id = ?",
                (*self._row(entity), entity.updated_ms, _text(entity.fields), entity.kind.space, entity.id),
            )
            self._write_properties(entity)
        return entity

    def get(self, space: Space, entity_id: int) -> Entity | None:
        """The entity of an id."""
        return next(iter(self.select(Clause("space = ? AND id = ?", [space.value, entity_id]))), None)

    def select(self, where: Clause, order: str = "id", limit: int = -1) -> list[Entity]:
        """Entities of one space by a condition, with their properties, in an order."""
        sql = f"SELECT {_ENTITY} FROM entity WHERE {where.sql} ORDER BY {order} LIMIT ?"  # noqa: S608 - values are marks
        rows = self._database.execute(sql, [*where.parameters, limit]).fetchall()
        entities = {row[0]: _entity(row) for row in rows}
        if entities:
            self._read_properties(entities)
        return list(entities.values())

    def _next_id(self, space: Space) -> int:
        row = self._database.execute(
            "INSERT INTO sequence VALUES (?, 1) ON CONFLICT DO UPDATE SET last = last + 1 RETURNING last", (space,)
        ).fetchone()
        return int(row[0])

    def _check(self, entity: Entity) -> None:
        too_long = [
            text for text in (entity.stored_name, entity.external_id or "", *entity.properties) if len(text) > MAX_NAME
        ]
        if too_long:
            raise database_error(f"value too long for type character varying({MAX_NAME}): {too_long[0][:40]!r}...")
        self._check_unique(entity, "kind = ? AND stored_name = ?", [entity.kind.name, entity.stored_name])
        if entity.external_id is not None:
            self._check_unique(entity, "external_id = ?", [entity.external_id])

    def _check_unique(self, entity: Entity, sql: str, parameters: list[Any]) -> None:
        # The real server blames the name for an external id too.
        where = f"SELECT 1 FROM entity WHERE space = ? AND id <> ? AND {sql}"  # noqa: S608 - from the two lines above
        if self._database.execute(where, [entity.kind.space, entity.id, *parameters]).fetchone():
            raise RegistryRefusal(409, f"{entity.kind.name} with name {entity.name} already exists")

    def _row(self, entity: Entity) -> tuple[Any, ...]:
        return (entity.stored_name, entity.parent_id, entity.external_id)

    def _write_properties(self, entity: Entity) -> None:
        key = (entity.kind.space, entity.id)
        self._database.execute("DELETE FROM property WHERE space = ? AND entity_id = ?", key)
        for name, (column, value) in entity.properties.items():
            self._database.execute(
                f"INSERT INTO property (space, entity_id, key, {column}) VALUES (?, ?, ?, ?)",  # noqa: S608 - a key of VALUE_KEYS
                (*key, name, value),
            )

    def _read_properties(self, entities: dict[int, Entity]) -> None:
        space = next(iter(entities.values())).kind.space
        columns = ", ".join(_COLUMNS)
        rows = self._database.execute(
            f"SELECT entity_id, key, {columns} FROM property"  # noqa: S608 - columns named above
            " WHERE space = ? AND entity_id IN (SELECT value FROM json_each(?))",
            (space, json.dumps(list(entities))),
        )
        for entity_id, key, *values in rows:
            column, value = next(pair for pair in zip(_COLUMNS, values, strict=True) if pair[1] is not None)
            entities[entity_id].properties[key] = (column, value)


def _entity(row: Iterable[Any]) -> Entity:
    entity_id, kind, stored_name, parent_id, external_id, created_ms, updated_ms, fields = row
    return Entity(
        KINDS[kind], stored_name, parent_id, external_id, json.loads(fields), {}, entity_id, created_ms, updated_ms
    )


def _text(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
