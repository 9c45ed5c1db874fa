"""The fields in which two objects differ: pure functions over plain dicts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.stage.quantities import parse_quantity

#: Steps from the root: field names, and ``[key]`` for an item of a list.
Path = tuple[str, ...]
#: Lists whose items have a key, as Kubernetes merges them; the items of all other lists have only an order.
ITEM_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "secrets": "name",
    "hostAliases": "ip",
    "supportedModelFormats": "name",
    "schedulingGates": "name",
}
#: Lists whose items are a set: their order means nothing.
SETS = ("tolerations", "accessModes", "finalizers", "drop", "add", "topologySpreadConstraints")
#: Maps whose values are quantities: ``1Gi`` equals ``1024Mi``.
_QUANTITIES = ("requests", "limits", "capacity", "sizeLimit")
#: Fields that the API server drops where they have their zero value.
_ZEROS = {
    "readOnly": False,
    "hostNetwork": False,
    "hostPID": False,
    "hostIPC": False,
    "stdin": False,
    "tty": False,
    "initialDelaySeconds": 0,
}


class Missing:
    """The value of a field that one side does not have."""

    def __repr__(self) -> str:
        return "(absent)"


MISSING = Missing()


@dataclass(frozen=True)
class Difference:
    """A field that two objects do not have in common.

    Attributes:
        path: The field.
        declared: Its declared value, or `MISSING`.
        live: Its live value, or `MISSING`.
    """

    path: Path
    declared: Any
    live: Any

    @property
    def where(self) -> str:
        """The path as kubectl writes it: ``spec.containers[minio].image``."""
        return render_path(self.path)


def render_path(path: Path) -> str:
    """Join the steps of a path."""
    return "".join(step if step.startswith("[") else f".{step}" for step in path).lstrip(".")


def find_differences(declared: Any, live: Any, path: Path = ()) -> Iterator[Difference]:
    """Yield each field that differs; a subtree that one side lacks is one difference per field or list item in it."""
    if (_is_empty(declared) and _is_empty(live)) or (path and _is_dropped_zero(path[-1], declared, live)):
        return
    if isinstance(declared, dict) and isinstance(live, dict):
        for key in [*declared, *(key for key in live if key not in declared)]:
            yield from find_differences(declared.get(key, MISSING), live.get(key, MISSING), (*path, str(key)))
    elif _is_missing_map(declared, live):
        only_declared = isinstance(declared, dict)
        for key, value in (declared if only_declared else live).items():
            wanted, found = (value, MISSING) if only_declared else (MISSING, value)
            yield from find_differences(wanted, found, (*path, str(key)))
    elif _is_keyed(path, declared, live):
        yield from _find_item_differences(declared, live, path)
    elif not _are_equal(declared, live, path):
        yield Difference(path, MISSING if _is_empty(declared) else declared, MISSING if _is_empty(live) else live)


def _is_empty(value: Any) -> bool:
    """The API server drops empty fields, or adds them: they mean the same as an absent one."""
    return value is None or value is MISSING or value in ("", {}, [])


def _is_dropped_zero(field: str, declared: Any, live: Any) -> bool:
    return field in _ZEROS and all(_is_empty(side) or side == _ZEROS[field] for side in (declared, live))


def _is_missing_map(declared: Any, live: Any) -> bool:
    return (_is_empty(declared) and isinstance(live, dict)) or (_is_empty(live) and isinstance(declared, dict))


def _is_keyed(path: Path, declared: Any, live: Any) -> bool:
    sides = [[] if _is_empty(side) else side for side in (declared, live)]
    if not path or not all(isinstance(side, list) for side in sides):
        return False
    items = [item for side in sides for item in side]
    return bool(items) and all(_key_of(path[-1], item) is not None for item in items)


def _key_of(field: str, item: Any) -> str | None:
    """What identifies an item of a list; None where the list has only an order."""
    if field in SETS:
        return json.dumps(item, sort_keys=True) if isinstance(item, dict) else str(item)
    if not isinstance(item, dict):
        return None
    if field == "ports":
        number = item.get("containerPort", item.get("port"))
        return None if number is None else f"{number}/{item.get('protocol', 'TCP')}"
    key = item.get(ITEM_KEYS.get(field, ""))
    return None if key is None else str(key)


def _find_item_differences(declared: Any, live: Any, path: Path) -> Iterator[Difference]:
    sides = []
    for side in (declared, live):
        items = [] if _is_empty(side) else side
        sides.append({_key_of(path[-1], item): item for item in items})
    wanted, found = sides
    for key in [*wanted, *(key for key in found if key not in wanted)]:
        here = (*path, f"[{key}]")
        if key in wanted and key in found:
            yield from find_differences(wanted[key], found[key], here)
        else:
            yield Difference(here, wanted.get(key, MISSING), found.get(key, MISSING))


def _are_equal(declared: Any, live: Any, path: Path) -> bool:
    if declared == live or (not isinstance(declared, (dict, list)) and str(declared) == str(live)):
        return True
    if isinstance(declared, list) and isinstance(live, list):
        items = zip(declared, live, strict=False)
        return len(declared) == len(live) and all(not list(find_differences(*both, path)) for both in items)
    if any(step in _QUANTITIES for step in path[-2:]):
        try:
            return parse_quantity(declared) == parse_quantity(live)
        except ValueError:
            return False
    return False
