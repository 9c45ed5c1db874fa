"""The stage's secrets: read from an env file, or made for a cluster of the run's own, and put into the manifests.

Manifests hold ``${KEY}`` where a value belongs. Values live in `Secret` until the one request that sends them.
"""

from __future__ import annotations

import re
import secrets as random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.objects import Object

PLACEHOLDER = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")
_ENTRY = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
#: Keys that a run may make itself, with the length of what it makes: nobody else ever needs these values.
_GENERATED = {"MINIO_ACCESS_KEY": 20, "MINIO_SECRET_KEY": 40}
#: MinIO does not start with shorter ones.
_SHORTEST = {"MINIO_ACCESS_KEY": 3, "MINIO_SECRET_KEY": 8}


@dataclass(frozen=True)
class Values:
    """Secret values by key.

    Attributes:
        values: Key to value.
        source: The env file they came from; None where no file was given, so that a local cluster makes its own.
    """

    values: Mapping[str, Secret] = field(default_factory=dict)
    source: Path | None = None


def template_path(overlay: Path) -> Path:
    """The template that lists the keys: the one beside the overlay's tree, else the packaged one."""
    beside = overlay.parent.parent / "base-secrets" / "env.template"
    return beside if beside.is_file() else fixtures_dir() / "base-secrets" / "env.template"


def load(overlay: Path, env_file: Path | None) -> Values:
    """Read and check the env file of an overlay's stage; without one there are no values yet (see `fill`).

    Raises:
        ConfigError: an entry is malformed, unknown or too short; it names file, line and key, never the value.
    """
    if env_file is None:
        return Values()
    template = template_path(overlay)
    known = {key for _, key, _ in _entries(template)}
    found: dict[str, Secret] = {}
    for number, key, value in _entries(env_file):
        where = f"{env_file}:{number}: {key}"
        if key not in known:
            raise ConfigError(f"{where} is not a key of the stage; {template.name} lists {', '.join(sorted(known))}")
        if key in found:
            raise ConfigError(f"{where} is there twice")
        if 0 < len(value.reveal()) < _SHORTEST.get(key, 0):
            raise ConfigError(f"{where} is too short: MinIO asks for at least {_SHORTEST[key]} characters")
        found[key] = value
    return Values({key: value for key, value in found.items() if value.reveal()}, env_file)


def _entries(path: Path) -> list[tuple[int, str, Secret]]:
    """Line number, key and value of every entry."""
    entries = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"env file {path} cannot be read: {type(error).__name__}") from None
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _ENTRY.fullmatch(text)
        if match is None:
            raise ConfigError(f"{path}:{number}: no KEY=VALUE (the line is not shown, it may hold a secret)")
        entries.append((number, match[1], Secret(_unquoted(match[2].strip(), f"{path}:{number}: {match[1]}"))))
    return entries


def _unquoted(text: str, where: str) -> str:
    quote = text[:1]
    if quote in ("'", '"'):
        if len(text) < 2 or text[-1] != quote:
            raise ConfigError(f"{where} has an opening quote without a closing one")
        return text[1:-1]
    if text.endswith(("'", '"')):
        raise ConfigError(f"{where} has a closing quote without an opening one")
    return text.split(" #", 1)[0].rstrip()


def needed(manifests: list[Object]) -> dict[str, str]:
    """Key to the Secret that holds it, for every placeholder in the rendered manifests."""
    return {
        key: objects.name_of(manifest)
        for manifest in render.of_kind(manifests, "Secret")
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
