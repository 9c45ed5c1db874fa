"""What the registry does with entities: create, change, find and list them, with the real server's oddities."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_vllm_stage.standins.registry import faults as f
from pytest_vllm_stage.standins.registry.bodies import Given, change, format_entity, unreadable
from pytest_vllm_stage.standins.registry.kinds import MODEL_VERSION, REGISTERED_MODEL, Kind
from pytest_vllm_stage.standins.registry.paging import page_of
from pytest_vllm_stage.standins.registry.refusal import bad_request, database_error, not_found, not_implemented
from pytest_vllm_stage.standins.registry.store import Clause, Entity, Store
from pytest_vllm_stage.standins.registry.values import is_poison, parse_id

Kinds = tuple[Kind, ...]


class Registry:
    """The registry as one request sees it: the store, and the faults that hit this request."""

    def __init__(self, store: Store, faults: Sequence[f.RegistryFault]) -> None:
        self._store = store
        self._faults = faults

    def show(self, entity: Entity) -> dict[str, Any]:
        """An entity as answers show it.

        Raises:
            Refusal: It cannot be read back.
        """
        for fault in f.select_faults(self._faults, f.Poison):
            if (fault.kind, fault.id) == (entity.kind.name, str(entity.id)):
                raise unreadable(entity, "poison")
        return format_entity(entity)

    def show_written(self, entity: Entity) -> dict[str, Any]:
        """The same for what was just written: what cannot be read back is stored all the same, and answered with 500.

        Raises:
            Refusal: It cannot be read back.
        """
        if any(is_poison(stored) for stored in entity.properties.values()):
            raise database_error(f"{entity.kind.name} {entity.id}: failed to decode a struct property")
        return self.show(entity)

    def get(self, kinds: Kinds, id_text: str) -> Entity:
        """The entity of an id; any database error is a 404 too.

        Raises:
            Refusal: There is none of these kinds.
        """
        entity_id = parse_id(id_text, kinds[0].name)
        entity = None if self._lost else self._store.get(kinds[0].space, entity_id)
        if entity is None or entity.kind not in kinds:
            raise not_found(f"no {kinds[0].name} found for id {id_text}")
        return entity

    def create(self, kind: Kind, given: Given, parent_id: int | None = None) -> Entity:
        """Add an entity.

        Args:
            kind: Its kind.
            given: What the request gives.
            parent_id: Its parent, where that is not a field of its own.

        Raises:
            Refusal: Its name or external id is taken, or a parent that must exist does not.
        """
        self._check_database()
        fields = ({"state": kind.state} if kind.state else {}) | given.fields
        if kind.parent:
            parent_id = int(fields[kind.parent])
        # The real server accepts a version of a model that does not exist.
        if kind is MODEL_VERSION and f.select_faults(self._faults, f.RefuseOrphans):
            self.get((REGISTERED_MODEL,), str(parent_id))
        name = given.name or str(uuid.uuid4())
        stored_name = f"{parent_id}:{name}" if kind.prefixed else name
        entity = Entity(kind, stored_name, parent_id, given.external_id, fields, given.properties or {})
        return self._store.insert(entity)

    def patch(self, entity: Entity, given: Given) -> Entity:
        """Change an entity. One that cannot be read back cannot be changed either.

        Raises:
            Refusal: Its new external id is taken, or it cannot be read.
        """
        self._check_database()
        self.show(entity)
        change(entity, given)
        return entity if f.select_faults(self._faults, f.DropPatches) else self._store.update(entity)

    def find(self, kinds: Kinds, query: Mapping[str, str]) -> Entity:
        """The one entity of a name (and parent) or external id; names are LIKE patterns.

        Raises:
            Refusal: The query names none, or there is not exactly one.
        """
        name, external_id = query.get("name"), query.get("externalId")
        parent = query.get("parentResourceId") if kinds[0].prefixed else None
        parent_id = parse_id(parent, "parent resource") if parent else None
        self._check_database()
        if name and parent_id is not None:
            where = _child(kinds, name, parent_id)
        elif name and not kinds[0].prefixed:
            where = _like(name)
        elif external_id:
            where = Clause("external_id = ?", [external_id])
            if parent_id is not None:
                where &= Clause("parent_id = ?", [parent_id])
        else:
            both = "name and parentResourceId" if kinds[0].prefixed else "name"
            raise bad_request(f"invalid parameters call, supply either {both}, or externalId")
        found = self._store.select(_of(kinds) & where, limit=2)
        if len(found) != 1:
            how_many = "multiple" if found else "no"
            raise not_found(f"{how_many} {kinds[0].name}s found for name={name}, externalId={external_id}")
        return found[0]

    def page(self, kinds: Kinds, query: Mapping[str, str], parent_id: int | None = None) -> dict[str, Any]:
        """One page of entities.

        Args:
            kinds: Kinds to list.
            query: The request's parameters; ``name`` and ``externalId`` count among one parent's children only.
            parent_id: Only the children of this one.

        Raises:
            Refusal: A parameter is malformed or not implemented, or an entity cannot be read back.
        """
        page = page_of(query)
        if query.get("filterQuery"):
            raise not_implemented("the stand-in does not implement filterQuery")
        where = _of(kinds)
        if parent_id is not None:
            where &= Clause("parent_id = ?", [parent_id])
            if query.get("name"):
                where &= _child(kinds, query["name"], parent_id)
            if query.get("externalId"):
                where &= Clause("external_id = ?", [query["externalId"]])
        start = page.start()
        if start is not None:
            where &= start
        self._check_database()
        entities, token = page.cut(self._store.select(where, page.order, page.limit))
        items = [self.show(entity) for entity in self._other_first(entities)]
        return {"items": items, "nextPageToken": token, "pageSize": page.size, "size": len(items)}

    @property
    def _lost(self) -> bool:
        return bool(f.select_faults(self._faults, f.LostDatabase))

    def _check_database(self) -> None:
        if self._lost:
            raise database_error("failed to connect to the database: connection refused")

    def _other_first(self, entities: list[Entity]) -> list[Entity]:
        for fault in f.select_faults(self._faults, f.OtherFirst):
            last = fault.avoid or (entities[0].name if entities else "")
            entities = sorted(entities, key=lambda entity: entity.name == last)
        return entities


def _of(kinds: Kinds) -> Clause:
    marks = ",".join("?" * len(kinds))
    return Clause(f"space = ? AND kind IN ({marks})", [kinds[0].space.value, *(kind.name for kind in kinds)])


def _like(pattern: str) -> Clause:
    return Clause(r"stored_name LIKE ? ESCAPE '\'", [pattern])


def _child(kinds: Kinds, name: str, parent_id: int) -> Clause:
    """A name as a pattern among one parent's children; of an artifact's name the last part is enough."""
    before = "%" if kinds[0].artifact_type else parent_id
    return _like(f"{before}:{name}") & Clause("parent_id = ?", [parent_id])
