"""Mutations of documents: one value replaced, removed, added or renamed, anywhere in a tree of dicts and lists."""

from __future__ import annotations

import copy
import random
from typing import Any

#: What a hand, another version or another program may write where something else is expected.
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, 1e308, -1e-9, 10**30, "", " ", "0", "x", "true", "1e3", "../x", "ünï\u2028", [],
    {}, [None], [[]], {"": None}, ["x"], {"x": {"y": []}}, "x" * 5000,
)  # fmt: skip


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place below the root: of each map entry and list item."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: list[tuple[Any, ...]] = []
    for key, item in items:
        found += [(*path, key), *places_of(item, (*path, key))]
    return found


def mutate(document: Any, dice: random.Random) -> tuple[Any, str]:
    """A copy with one change, and the change in words."""
    made = copy.deepcopy(document)
    path = dice.choice(places_of(made))
    parent = made
    for step in path[:-1]:
        parent = parent[step]
    key, kind = path[-1], dice.choice(("replace", "replace", "replace", "remove", "rename", "duplicate"))
    if kind == "remove":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    elif kind == "duplicate" and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    else:
        parent[key] = copy.deepcopy(dice.choice(STRANGE))
    return made, f"{kind} {'.'.join(map(str, path))}"


def write_toml(document: dict[str, Any]) -> str:
    """The document as TOML, tables inline; what TOML cannot hold becomes a string."""
    return "".join(f"{_toml_key(key)} = {_toml(value)}\n" for key, value in document.items())


def _toml_key(key: str) -> str:
    return f'"{key}"' if not key.isidentifier() or not key.isascii() else key


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) < 2**62:
        return str(value)
    if isinstance(value, float):
        return repr(value) if "e" not in repr(value) else f"{value:e}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    text = "" if value is None else str(value)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
