"""Pages of a list: what a request asks for, and the token that leads to the next page.

Tokens are deterministic: the upstream client's pager stops only when it sees the first page's token again.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_vllm_stage.standins.registry.refusal import bad_request
from pytest_vllm_stage.standins.registry.store import Clause, Entity
from pytest_vllm_stage.standins.registry.values import INT64_MAX, INT64_MIN, integer

_ORDERS = {"CREATE_TIME": "created_ms", "LAST_UPDATE_TIME": "updated_ms"}


@dataclass(frozen=True)
class Page:
    """One page of a list.

    Attributes:
        size: Entities that it may hold; 0 or less is all.
        column: What is ordered by.
        descending: Largest first.
        after: Id and ordered value of the page before's last entity.
    """

    size: int = 0
    column: str = "id"
    descending: bool = False
    after: tuple[int, str] | None = None

    @property
    def order(self) -> str:
        """The ORDER BY; ids decide between equal times."""
        direction = "DESC" if self.descending else "ASC"
        return f"{self.column} {direction}, id {direction}"

    @property
    def limit(self) -> int:
        """Rows to read: one more than the page holds shows whether another follows."""
        return self.size + 1 if self.size > 0 else -1

    def start(self) -> Clause | None:
        """The condition that leaves out the pages before; a forged token leaves nothing."""
        if self.after is None:
            return None
        entity_id, text = self.after
        value = integer(text, INT64_MIN, INT64_MAX)
        if value is None:
            return Clause("0")
        sign = "<" if self.descending else ">"
        return Clause(f"({self.column}, id) {sign} (?, ?)", [value, entity_id])

    def cut(self, entities: list[Entity]) -> tuple[list[Entity], str]:
        """The page's entities, and the next page's token or nothing."""
        if self.size <= 0 or len(entities) <= self.size:
            return entities, ""
        last = entities[self.size - 1]
        return entities[: self.size], token_of(last.id, getattr(last, self.column))


def page_of(query: Mapping[str, str]) -> Page:
    """The page that a request asks for; unknown orders mean the id, ascending.

    Raises:
        Refusal: The size or the token is malformed.
    """
    size = integer(query.get("pageSize") or "0")
    if size is None:
        raise bad_request(f"invalid pageSize {query['pageSize']!r}")
    token = query.get("nextPageToken", "")
    return Page(
        size,
        _ORDERS.get(query.get("orderBy", ""), "id"),
        query.get("sortOrder") == "DESC",
        read_token(token) if token else None,
    )


def token_of(entity_id: int, value: int) -> str:
    """The token that leads behind an entity."""
    return base64.b64encode(f"{entity_id}:{value}".encode()).decode()


def read_token(token: str) -> tuple[int, str]:
    """An entity's id and ordered value from a token.

    Raises:
        Refusal: It was not made by `token_of`.
    """
    try:
        text = base64.b64decode(token, validate=True).decode()
    except (binascii.Error, ValueError):
        raise bad_request("invalid nextPageToken: not base64") from None
    id_text, colon, value = text.partition(":")
    entity_id = integer(id_text)
    if entity_id is None or not colon:
        raise bad_request("invalid nextPageToken: not ID:VALUE")
    return entity_id, value
