"""What the registry does with entities: make, change, find and list them, with the real server's oddities."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pytest_vllm_stage.standins.registry import faults as f
from pytest_vllm_stage.standins.registry.bodies import Given, change, shown, unreadable
from pytest_vllm_stage.standins.registry.conditions import Clause, of_kinds
from pytest_vllm_stage.standins.registry.filters import Comparison, parse
from pytest_vllm_stage.standins.registry.kinds import (
    INFERENCE_SERVICE,
    MODEL_VERSION,
    REGISTERED_MODEL,
    SERVING_ENVIRONMENT,
    Kind,
    Repeat,
)
from pytest_vllm_stage.standins.registry.paging import page_of
from pytest_vllm_stage.standins.registry.refusal import bad_request, database_error, not_found
from pytest_vllm_stage.standins.registry.store import Entity, Store
from pytest_vllm_stage.standins.registry.values import id_of, is_poison

Kinds = tuple[Kind, ...]


class Registry:
    """The registry as one request meets it: the store, and the faults that hit this request."""

    def __init__(self, store: Store, faults: Sequence[f.Fault]) -> None:
        self._store = store
        self._faults = faults

    def show(self, entity: Entity) -> dict[str, Any]:
        """An entity as answers show it.

        Raises:
            Refusal: It cannot be read back.
        """
        for fault in f.of_type(self._faults, f.Poison):
            if (fault.kind, fault.id) == (entity.kind.name, str(entity.id)):
                raise unreadable(entity, "poison")
        return shown(entity)

    def show_written(self, entity: Entity) -> dict[str, Any]:
        """The same for what was just written: what cannot be read back is stored all the same, and told as 500."""
        if any(is_poison(stored) for stored in entity.properties.values()):
            raise database_error(f"{entity.kind.name} {entity.id}: failed to decode a struct property")
        return self.show(entity)

    def get(self, kinds: Kinds, id_text: str) -> Entity:
        """The entity of an id; any trouble of the database is a 404 too.

        Raises:
            Refusal: There is none of these kinds.
        """
        entity_id = id_of(id_text, kinds[0].name)
        entity = None if self._lost else self._store.get(kinds[0].space, entity_id)
        if entity is None or entity.kind not in kinds:
            raise not_found(f"no {kinds[0].name} found for id {id_text}")
        return entity

    def create(self, kind: Kind, given: Given, parent_id: int | None = None, *, defaults: bool = True) -> Entity:
        """Add an entity.

        Args:
            kind: Its kind.
            given: What the request gives.
            parent_id: Its parent, where that is no field of its own.
            defaults: Fill in the defaults of its kind.

        Raises:
            Refusal: Its name or external id is taken, or a parent that must exist does not.
        """
        self._check_database()
        fields = (dict(kind.defaults) if defaults else {}) | given.fields
        if kind.parent:
            parent_id = int(fields[kind.parent])
        self._check_parents(kind, fields)
        name = given.name or str(uuid.uuid4())
        stored_name = f"{uuid.uuid4() if parent_id is None else parent_id}:{name}" if kind.prefixed else name
        if kind.repeat is Repeat.UPDATES:
            existing = self._store.named(kind, stored_name)
            if existing is not None:
                return self.patch(existing, given)
        entity = Entity(kind, stored_name, parent_id, given.external_id, fields, given.properties or {})
        return self._store.insert(entity)

    def patch(self, entity: Entity, given: Given) -> Entity:
        """Change an entity. One that cannot be read back cannot be changed either, so it stays spoiled.

        Raises:
            Refusal: Its new external id is taken, or it cannot be read.
        """
        self._check_database()
        self.show(entity)
        change(entity, given)
        return entity if f.of_type(self._faults, f.DropPatches) else self._store.update(entity)

    def find(self, kinds: Kinds, query: Mapping[str, str]) -> Entity:
        """The one entity of a name (and parent) or external id; names are LIKE patterns.

        Raises:
            Refusal: The query names none, or there is not exactly one.
        """
        name, external_id = query.get("name"), query.get("externalId")
        parent = query.get("parentResourceId") if kinds[0].prefixed else None
        parent_id = id_of(parent, "parent resource") if parent else None
        self._check_database()
        where = _of(kinds)
        if name and parent_id is not None:
            where &= _child(kinds, name, parent_id)
        elif name and not kinds[0].prefixed:
            where &= Clause("pg_like(?, entity.stored_name)", [name])
        elif external_id:
            where &= Clause("entity.external_id = ?", [external_id])
            if parent_id is not None:
                where &= Clause("entity.parent_id = ?", [parent_id])
        else:
            both = "name and parentResourceId" if kinds[0].prefixed else "name"
            raise bad_request(f"invalid parameters call, supply either {both}, or externalId")
        found = self._store.select(where, limit=2)
        if len(found) != 1:
            how_many = "multiple" if found else "no"
            raise not_found(f"{how_many} {kinds[0].name}s found for name={name}, externalId={external_id}")
        return found[0]

    def page(
        self,
        kinds: Kinds,
        query: Mapping[str, str],
        *,
        parent_id: int | None = None,
        filtered: bool = False,
        named: Callable[[Kinds, Mapping[str, str], int], Clause] | None = None,
    ) -> dict[str, Any]:
        """One page of entities.

        Args:
            kinds: Kinds to list.
            query: The request's parameters.
            parent_id: Only the children of this one.
            filtered: Honour filterQuery; some lists of the real server drop it unread.
            named: Honour name and externalId, in this way.

        Raises:
            Refusal: A parameter is malformed, or an entity cannot be read back.
        """
        page = page_of(query)
        condition = parse(query.get("filterQuery", "")) if filtered else None
        where = _of(kinds)
        if parent_id is not None:
            where &= Clause("entity.parent_id = ?", [parent_id])
            if named is not None:
                where &= named(kinds, query, parent_id)
        if condition is not None:
            where &= of_kinds(kinds, condition)
        start = page.start()
        if start is not None:
            where &= start
        self._check_database()
        entities, token = page.cut(self._store.select(where, page.order, page.limit))
        items = [self.show(entity) for entity in self._other_first(entities)]
        return {"items": items, "nextPageToken": token, "pageSize": page.size, "size": len(items)}

    def newest_version(self, service: Entity) -> Entity:
        """The version that a service serves: the one it names, else the newest of its model.

        Raises:
            Refusal: There is none.
        """
        if "modelVersionId" in service.fields:
            return self.get((MODEL_VERSION,), str(service.fields["modelVersionId"]))
        self._check_database()
        where = _of((MODEL_VERSION,)) & Clause("entity.parent_id = ?", [service.fields["registeredModelId"]])
        found = self._store.select(where, "created_ms DESC, id DESC", 1)
        if not found:
            raise not_found(f"no model versions found for inference service {service.id}")
        return found[0]

    @property
    def _lost(self) -> bool:
        return bool(f.of_type(self._faults, f.LostDatabase))

    def _check_database(self) -> None:
        if self._lost:
            raise database_error("failed to connect to the database: connection refused")

    def _check_parents(self, kind: Kind, fields: dict[str, Any]) -> None:
        """Of the parents that a body names, the real server looks up only the environment."""
        if kind is INFERENCE_SERVICE:
            self.get((SERVING_ENVIRONMENT,), str(fields["servingEnvironmentId"]))
        if kind is MODEL_VERSION and f.of_type(self._faults, f.RefuseOrphans):
            self.get((REGISTERED_MODEL,), str(fields["registeredModelId"]))

    def _other_first(self, entities: list[Entity]) -> list[Entity]:
        for fault in f.of_type(self._faults, f.OtherFirst):
            last = fault.avoid or (entities[0].name if entities else "")
            entities = sorted(entities, key=lambda entity: entity.name == last)
        return entities


def _of(kinds: Kinds) -> Clause:
    marks = ",".join("?" * len(kinds))
    return Clause(
        f"entity.space = ? AND entity.kind IN ({marks})", [kinds[0].space.value, *(kind.name for kind in kinds)]
    )


def through_the_filter(kinds: Kinds, query: Mapping[str, str], _parent_id: int) -> Clause:
    """Name and external id put into a filterQuery by the server itself, which forgets that names can hold quotes.

    Raises:
        Refusal: One holds a quote.
    """
    where = Clause("1")
    for key in ("name", "externalId"):
        value = query.get(key)
        if value and "'" in value:
            raise bad_request(f"error parsing filter query: unexpected {value[:40]!r}")
        if value:
            where &= of_kinds(kinds, Comparison(key, "=", value))
    return where


def by_stored_name(kinds: Kinds, query: Mapping[str, str], parent_id: int) -> Clause:
    """Name as a LIKE pattern, else external id."""
    if query.get("name"):
        return _child(kinds, query["name"], parent_id)
    if query.get("externalId"):
        return Clause("entity.external_id = ?", [query["externalId"]])
    return Clause("1")


def _child(kinds: Kinds, name: str, parent_id: int) -> Clause:
    """A name as a pattern among one parent's children; of an artifact's name the last part is enough."""
    before = "%" if kinds[0].artifact_type else parent_id
    return Clause("pg_like(?, entity.stored_name) AND entity.parent_id = ?", [f"{before}:{name}", parent_id])
