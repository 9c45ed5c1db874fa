"""Who set a field, by the object's ``managedFields``: pure functions over objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.checks.stage.drift.fields import ITEM_KEYS, Path
from pytest_vllm_stage.stage.objects import Object

#: Field managers by which a person changes an object; kubectl sends its subcommand.
_PERSONS = ("kubectl-", "oc-", "Mozilla", "k9s", "lens", "node-fetch", "headlamp")
#: Subcommands of kubectl that pipelines deploy with, and that keep to a manifest.
_DEPLOYERS = ("kubectl-client-side-apply", "kubectl-create", "kubectl-replace")
_NAMES = {
    "Mozilla": "the web console",
    "kube-controller-manager": "a controller of Kubernetes",
    "kserve-manager": "KServe",
    "manager": "a controller",
    "OpenAPI-Generator": "a Python client",
}


@dataclass(frozen=True)
class Owner:
    """The field manager that set a field last.

    Attributes:
        manager: Its name; empty where no manager has the field: an API default, or an admission plugin or webhook.
        time: When it wrote its fields last.
    """

    manager: str = ""
    time: str = ""

    @property
    def is_person(self) -> bool:
        """A person changed the field by hand."""
        return self.manager.startswith(_PERSONS) and self.manager not in _DEPLOYERS

    def __str__(self) -> str:
        if not self.manager:
            return "by no field manager: an admission plugin or webhook, or a default"
        name = _NAMES.get(self.manager, "")
        if not name and self.manager.startswith("kubectl-"):
            name = self.manager.replace("-", " ", 1)
        return f"by {name or self.manager}{f' ({self.manager})' if name else ''} at {self.time}"


def find_owner(item: Object, path: Path) -> Owner:
    """The manager that has the field; the one that wrote last where several share it."""
    owners = [
        Owner(str(entry.get("manager", "")), str(entry.get("time", "")))
        for entry in item["metadata"].get("managedFields") or []
        if entry.get("subresource") != "status" and _has_field(entry.get("fieldsV1") or {}, path)
    ]
    return max(owners, key=lambda owner: owner.time, default=Owner())


def last_person(item: Object) -> Owner | None:
    """The person who changed the object last; None where none did."""
    entries = item["metadata"].get("managedFields") or []
    owners = [Owner(str(entry.get("manager", "")), str(entry.get("time", ""))) for entry in entries]
    return max((owner for owner in owners if owner.is_person), key=lambda owner: owner.time, default=None)


def owned_by_persons(item: Object) -> list[tuple[Path, Owner]]:
    """Each field that a person has, as far as ``managedFields`` names it, with the person."""
    found = []
    for entry in item["metadata"].get("managedFields") or []:
        owner = Owner(str(entry.get("manager", "")), str(entry.get("time", "")))
        if owner.is_person and entry.get("subresource") != "status":
            found += [(path, owner) for path in _leaves(entry.get("fieldsV1") or {})]
    return found


def _leaves(tree: Object, path: Path = ()) -> Iterator[Path]:
    for key, below in tree.items():
        if key == ".":
            continue
        step = key[2:] if key.startswith("f:") else f"[{_item_name(key)}]"
        if below and set(below) != {"."}:
            yield from _leaves(below, (*path, step))
        else:
            yield (*path, step)


def _item_name(key: str) -> str:
    """The item of a list in words: ``k:{"name":"minio"}`` is ``minio``."""
    try:
        value = json.loads(key[2:])
    except ValueError:
        return key[2:]
    return "/".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def _has_field(tree: Any, path: Path) -> bool:
    """The tree has the path, or ends on the way at a field that is owned as a whole."""
    for index, step in enumerate(path):
        keys = _tree_keys(step, path[index - 1] if index else "")
        found = next((tree[key] for key in keys if key in tree), None)
        if found is None:
            return False
        if found == {}:
            return True
        tree = found
    return bool(path)


def _tree_keys(step: str, field: str) -> Iterator[str]:
    """How ``fieldsV1`` may write a step."""
    if not step.startswith("["):
        yield f"f:{step}"
        return
    key = step[1:-1]
    yield f'k:{{"{ITEM_KEYS.get(field, "name")}":{json.dumps(key)}}}'
    yield f"v:{json.dumps(key)}"
    yield f"v:{key}"
    number, _, protocol = key.partition("/")
    for name in ("containerPort", "port"):
        yield f'k:{{"{name}":{number},"protocol":"{protocol}"}}'
        yield f'k:{{"{name}":{number}}}'
