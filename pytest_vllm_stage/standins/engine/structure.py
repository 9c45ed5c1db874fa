"""Text that fits a regular expression or a JSON schema, drawn by a key: guided output without a model.

Only what the checks use is supported: literals, classes, groups, branches and repeats of expressions; objects, arrays,
strings, numbers, enumerations and ``anyOf`` of schemas. Anything else is refused, never guessed.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

#: Repeats without an upper bound end after at most this many more.
_MORE = 3
_PRINTABLE = [chr(code) for code in range(32, 127)]
_CATEGORIES: Mapping[str, str] = {
    "CATEGORY_DIGIT": "0123456789",
    "CATEGORY_SPACE": " \t\n",
    "CATEGORY_WORD": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_",
}


class Unsupported(ValueError):
    """An invalid pattern or schema, or one that this engine does not support."""


def matching(pattern: str, dice: random.Random) -> str:
    """A text that ``pattern`` matches as a whole.

    Raises:
        Unsupported: it is not a pattern, or has a construct that is not supported here.
    """
    parse: Callable[[str], Iterable[Any]] = re._parser.parse  # type: ignore[attr-defined]
    try:
        return "".join(_node(str(name), what, dice) for name, what in parse(pattern))
    except re.error as error:
        raise Unsupported(f"invalid regex {pattern!r}: {error}") from None


def _node(name: str, what: Any, dice: random.Random) -> str:
    if name == "LITERAL":
        return chr(what)
    if name == "ANY":
        return dice.choice(_PRINTABLE)
    if name == "IN":
        return dice.choice(_members(what))
    if name == "BRANCH":
        return "".join(_node(str(inner), more, dice) for inner, more in dice.choice(what[1]))
    if name == "SUBPATTERN":
        return "".join(_node(str(inner), more, dice) for inner, more in what[-1])
    if name in ("MAX_REPEAT", "MIN_REPEAT"):
        least, most, inner = what
        times = dice.randint(least, min(int(most), least + _MORE))
        return "".join(_node(str(kind), more, dice) for _ in range(times) for kind, more in inner)
    if name == "AT":
        return ""
    raise Unsupported(f"regex construct {name} is not known")


def _members(items: Iterable[tuple[Any, Any]]) -> list[str]:
    found: list[str] = []
    negated = False
    for kind, what in items:
        name = str(kind)
        if name == "NEGATE":
            negated = True
        elif name == "LITERAL":
            found.append(chr(what))
        elif name == "RANGE":
            found += map(chr, range(what[0], what[1] + 1))
        elif str(what) in _CATEGORIES:
            found += _CATEGORIES[str(what)]
        else:
            raise Unsupported(f"regex class {name} {what} is not known")
    return [character for character in _PRINTABLE if character not in found] if negated else found


def fitting(schema: Any, dice: random.Random) -> Any:
    """A value that fits a JSON schema, whose references name its own ``$defs``.

    Raises:
        Unsupported: it is not a schema, or uses a keyword in an unsupported form.
    """
    definitions = schema.get("$defs", {}) if isinstance(schema, dict) else {}
    return _fitting(_with_definitions(schema, definitions), dice)


def _with_definitions(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """The schema with what its references name in their place."""
    if isinstance(schema, list):
        return [_with_definitions(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" not in schema:
        return {key: _with_definitions(value, definitions) for key, value in schema.items() if key != "$defs"}
    name = str(schema["$ref"]).removeprefix("#/$defs/")
    if name not in definitions:
        raise Unsupported(f"cannot resolve the reference {schema['$ref']!r}")
    return definitions[name]


def _fitting(schema: Any, dice: random.Random) -> Any:
    """A value that fits a JSON schema without references.

    Raises:
        Unsupported: it is not a schema, or uses a keyword in an unsupported form.
    """
    if not isinstance(schema, dict):
        raise Unsupported(f"a schema is an object, not {schema!r}")
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return dice.choice(schema["enum"])
    if "anyOf" in schema:
        return _fitting(dice.choice(schema["anyOf"]), dice)
    kind = schema.get("type", "object")
    maker = _MAKERS.get(kind) if isinstance(kind, str) else None
    if maker is None:
        raise Unsupported(f"Invalid type: {kind}")
    return maker(schema, dice)


def _object(schema: dict[str, Any], dice: random.Random) -> dict[str, Any]:
    needed = schema.get("required", [])
    properties: dict[str, Any] = schema.get("properties", {})
    return {name: _fitting(of, dice) for name, of in properties.items() if name in needed or dice.random() < 0.5}


def _array(schema: dict[str, Any], dice: random.Random) -> list[Any]:
    least = schema.get("minItems", 0)
    count = dice.randint(least, schema.get("maxItems", least + 2))
    return [_fitting(schema.get("items", {"type": "integer"}), dice) for _ in range(count)]


def _string(schema: dict[str, Any], dice: random.Random) -> str:
    if "pattern" in schema:
        return matching(schema["pattern"], dice)
    least = schema.get("minLength", 0)
    count = dice.randint(least, schema.get("maxLength", least + 6))
    return "".join(dice.choice("abcdefgh ") for _ in range(count))


def _integer(schema: dict[str, Any], dice: random.Random) -> int:
    least = schema.get("minimum", 0)
    return dice.randint(least, schema.get("maximum", least + 99))


def _number(schema: dict[str, Any], dice: random.Random) -> float:
    least = schema.get("minimum", 0)
    return round(dice.uniform(least, schema.get("maximum", least + 99)), 2)


_MAKERS: Mapping[str, Callable[[dict[str, Any], random.Random], Any]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": lambda _, dice: dice.random() < 0.5,
    "null": lambda _schema, _dice: None,
}


def json_text(value: Any) -> str:
    """The JSON of a value, formatted as the engine writes it."""
    return json.dumps(value, ensure_ascii=False)
