"""The stage's secrets: read from an env file, or generated for a local cluster, and put into the manifests.

Manifests hold ``${KEY}`` where a value belongs. Values live in `Secret` until the one request that sends them.
"""

from __future__ import annotations

import difflib
import re
import secrets as random
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.files import read_text
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.objects import Object

PLACEHOLDER = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")
_ENTRY = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=(.*)", re.DOTALL)
#: A comment after a value begins behind whitespace: a value may hold a ``#``.
_COMMENT = re.compile(r"[ \t]#.*", re.DOTALL)
#: What word processors and chat programs make of straight quotes.
_TYPOGRAPHIC = set("\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb")
#: Keys whose values a run may generate, with their lengths: only the run itself needs these values.
_GENERATED = {"MINIO_ACCESS_KEY": 20, "MINIO_SECRET_KEY": 40}
#: MinIO does not start with shorter ones.
_SHORTEST = {"MINIO_ACCESS_KEY": 3, "MINIO_SECRET_KEY": 8}


@dataclass(frozen=True)
class Values:
    """Secret values by key.

    Attributes:
        values: Key to value.
        source: The env file they came from; None where no file was given, so that a local cluster generates its own.
    """

    values: Mapping[str, Secret] = field(default_factory=dict)
    source: Path | None = None


def template_path(overlay: Path) -> Path:
    """The template that lists the keys: the one in the overlay's own tree, else the packaged one."""
    own = overlay.parent.parent / "base-secrets" / "env.template"
    return own if own.is_file() else fixtures_dir() / "base-secrets" / "env.template"


def load(overlay: Path, env_file: Path | None) -> Values:
    """Read and check the env file of an overlay's stage; without one there are no values yet (see `fill`).

    Raises:
        ConfigError: an entry is malformed, unknown or too short; it names file, line and key, never the value.
    """
    if env_file is None:
        return Values()
    template = template_path(overlay)
    known = [entry.key for entry in _read_entries(template)]
    found: dict[str, Secret] = {}
    for entry in _read_entries(env_file):
        if entry.key not in known:
            raise ConfigError(f"{entry.where}: {_describe_unknown_key(entry.key, known, template)}")
        where = f"{entry.where}: {entry.key}"
        if entry.key in found:
            raise ConfigError(f"{where} is set twice")
        if 0 < len(entry.value.reveal()) < _SHORTEST.get(entry.key, 0):
            raise ConfigError(f"{where} is too short: MinIO requires at least {_SHORTEST[entry.key]} characters")
        found[entry.key] = entry.value
    return Values({key: value for key, value in found.items() if value.reveal()}, env_file)


@dataclass(frozen=True)
class _Entry:
    """One ``KEY=VALUE`` line, and its file and line number."""

    where: str
    key: str
    value: Secret


def _read_entries(path: Path) -> list[_Entry]:
    entries = []
    for number, line in enumerate(read_text(path, "env file").split("\n"), start=1):
        text, where = line.strip(" \t"), f"env file {path}:{number}"
        if not text or text.startswith("#"):
            continue
        match = _ENTRY.fullmatch(text)
        if match is None:
            raise ConfigError(f"{where}: {_describe_malformed_line(text)} (the line is not shown, it may be secret)")
        value = Secret(_parse_value(match[2], f"{where}: {match[1]}"))
        entries.append(_Entry(where, match[1], value))
    return entries


def _describe_malformed_line(text: str) -> str:
    before, equals, _ = text.partition("=")
    if invisible := _name_invisible(before):
        return f"{invisible} in or next to the key"
    return "expected KEY=VALUE, got an invalid key" if equals else "expected KEY=VALUE, got no '='"


def _describe_unknown_key(key: str, known: Sequence[str], template: Path) -> str:
    """Name the key only where it is close to a valid one: a line of a wrapped value can look like a key, too."""
    near = difflib.get_close_matches(key.upper(), known, n=1)
    valid = f"; {template.name} lists {', '.join(sorted(known))}"
    if not near:
        return f"unknown key (not shown, it may be part of a secret){valid}"
    return f"{key} is not a key of the stage (did you mean {near[0]}?){valid}"


def _parse_value(text: str, where: str) -> str:
    """The value without its quotes, and without a comment after whitespace."""
    stripped = text.lstrip(" \t")
    quote = stripped[:1]
    if quote in ("'", '"'):
        end = stripped.find(quote, 1)
        if end < 0:
            raise ConfigError(f"{where} has an opening quote without a closing one")
        if _COMMENT.sub("", stripped[end + 1 :]).strip(" \t"):
            raise ConfigError(f"{where} has text after its closing quote")
        return _without_reference(stripped[1:end], where) if quote == '"' else stripped[1:end]
    value = _COMMENT.sub("", text).strip(" \t")
    if value.endswith(("'", '"')):
        raise ConfigError(f"{where} has a closing quote without an opening one")
    if set(value[:1] + value[-1:]) & _TYPOGRAPHIC:
        raise ConfigError(f"{where} has typographic quotes around its value: retype them as ' or \"")
    if invisible := _name_invisible(value):
        raise ConfigError(f"{where} has {invisible} in its value: retype the line, or put the value in quotes")
    return _without_reference(value, where)


def _without_reference(value: str, where: str) -> str:
    """Other readers of env files expand ``${NAME}``; used as it stands, it would be a wrong credential."""
    if PLACEHOLDER.search(value):
        raise ConfigError(f"{where} refers to a variable, which is not expanded: write the value, or use single quotes")
    return value


def _name_invisible(text: str) -> str:
    """The first character that shows as nothing or as a plain space, for people; empty where there is none."""
    for character in text:
        category = unicodedata.category(character)
        if character not in " \t" and (category in ("Cf", "Cc", "Zs", "Zl", "Zp")):
            name = "BYTE ORDER MARK" if character == "\ufeff" else unicodedata.name(character, "CONTROL CHARACTER")
            return f"an invisible character, {name} (U+{ord(character):04X}),"
    return ""


def needed(manifests: list[Object]) -> dict[str, str]:
    """Key to the Secret that holds it, for every placeholder in the rendered manifests."""
    return {
        key: objects.name_of(manifest)
        for manifest in render.select_kind(manifests, "Secret")
        for text in (manifest.get("stringData") or {}).values()
        for key in PLACEHOLDER.findall(str(text))
    }


def complete(manifests: list[Object], values: Values, *, generate: bool) -> dict[str, Secret]:
    """A value for every key that the manifests need.

    Args:
        manifests: The rendered manifests.
        values: What `load` read.
        generate: Make what a run can make itself where no env file was given: the cluster is the run's own.

    Raises:
        ConfigError: an entry is missing or empty; it names all of them, the file and the Secrets that need them.
    """
    wanted, found = needed(manifests), dict(values.values)
    if generate and values.source is None:
        found |= {key: Secret(random.token_hex(_GENERATED[key] // 2)) for key in wanted if key in _GENERATED}
    missing = [f"{key} (for secret {wanted[key]})" for key in wanted if key not in found]
    if missing:
        where = f"{values.source}: missing or empty" if values.source else "no env file was given (--stage-env-file)"
        raise ConfigError(
            f"{where}: {', '.join(missing)}", hint="copy fixtures/base-secrets/env.template to .env and fill it in"
        )
    return {key: found[key] for key in wanted}


def fill(manifest: Object, values: Mapping[str, Secret]) -> Object:
    """A Secret manifest with its placeholders filled, for the request that applies it and for nothing else."""
    if manifest["kind"] != "Secret":
        return manifest
    data = {
        key: PLACEHOLDER.sub(lambda match: values[match[1]].reveal(), str(text))
        for key, text in (manifest.get("stringData") or {}).items()
    }
    return {**manifest, "stringData": data}
