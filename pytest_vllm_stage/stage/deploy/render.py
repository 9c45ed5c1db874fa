"""From a kustomize overlay to manifests, and to the flat fields by which two renderings are compared."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object

RENDER_TIMEOUT_S = 60
#: Manifests are applied in waves, by the annotation that Argo CD orders them by too.
WAVE_ANNOTATION = "argocd.argoproj.io/sync-wave"


def render(overlay: Path, kubectl: str) -> list[Object]:
    """The overlay's manifests, as ``kubectl kustomize`` gives them.

    Raises:
        ConfigError: the overlay does not render, or holds a document that is not a manifest; names the folder or file.
        EnvironmentUnusable: kubectl does not run.
    """
    try:
        done = subprocess.run(
            [kubectl, "kustomize", str(overlay)], capture_output=True, text=True, timeout=RENDER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentUnusable(f"{kubectl} kustomize does not run: {error}") from None
    hint = f"{kubectl} kustomize {overlay}"
    if done.returncode != 0:
        reason = done.stderr.strip().removeprefix("error: ")
        raise ConfigError(f"overlay {overlay} does not render: {reason}", hint=hint)
    import yaml  # only where a stage is rendered: every worker imports this module

    manifests = [document for document in yaml.safe_load_all(done.stdout) if document is not None]
    for manifest in manifests:
        check_manifest(manifest, overlay, hint)
    return manifests


def check_manifest(manifest: Any, overlay: Path, hint: str) -> None:
    """Refuse a document that is not a manifest, or whose wave is not a number.

    Raises:
        ConfigError: naming the overlay, the document and the field.
    """
    fields = manifest if isinstance(manifest, dict) else {}
    kind, metadata = fields.get("kind"), fields.get("metadata")
    if not isinstance(metadata, dict):
        metadata = {}
    named = {"apiVersion": fields.get("apiVersion"), "kind": kind, "metadata.name": metadata.get("name")}
    missing = [field for field, value in named.items() if not value]
    if missing:
        raise ConfigError(f"overlay {overlay}: a document ({kind or 'no kind'}) lacks {', '.join(missing)}", hint=hint)
    where = f"overlay {overlay}: {kind}/{metadata['name']}"
    for field, value in (("metadata.annotations", metadata.get("annotations")), ("spec", fields.get("spec"))):
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{where}: {field}: expected a map, got {value!r}", hint=hint)
    wave = (metadata.get("annotations") or {}).get(WAVE_ANNOTATION, "0")
    if not re.fullmatch(r"[+-]?\d{1,9}", str(wave)):
        raise ConfigError(f"{where}: annotation {WAVE_ANNOTATION}: expected a whole number, got {wave!r}", hint=hint)


def in_namespace(manifests: list[Object], namespace: str) -> list[Object]:
    """The manifests for another namespace than the overlay's; inside the stage, names are short and need no change.

    Kustomize has written the overlay's namespace into every object that is in one.
    """
    moved = []
    for manifest in manifests:
        metadata = dict(manifest["metadata"])
        if manifest["kind"] == "Namespace":
            metadata["name"] = namespace
        elif "namespace" in metadata:
            metadata["namespace"] = namespace
        moved.append({**manifest, "metadata": metadata})
    return moved


def waves(manifests: list[Object]) -> list[list[Object]]:
    """The manifests by `WAVE_ANNOTATION`, lowest first; 0 where there is none."""
    by_wave: dict[int, list[Object]] = {}
    for manifest in manifests:
        annotations = manifest["metadata"].get("annotations") or {}
        by_wave.setdefault(int(str(annotations.get(WAVE_ANNOTATION, "0"))), []).append(manifest)
    return [by_wave[wave] for wave in sorted(by_wave)]


def flatten(manifests: list[Object]) -> dict[str, str]:
    """Field path to value, for example ``ServingRuntime/vllm spec.containers[0].image``."""
    return {
        f"{manifest['kind']}/{objects.name_of(manifest)} {path}": value
        for manifest in manifests
        for path, value in _fields({key: manifest[key] for key in manifest if key not in ("kind", "apiVersion")}, "")
    }


def _fields(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key in sorted(value):
            yield from _fields(value[key], f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _fields(item, f"{path}[{index}]")
    else:
        yield path, str(value)


def select_kind(manifests: list[Object], kind: str) -> list[Object]:
    """Return the manifests of one kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def named(manifests: list[Object], kind: str, name: str) -> Object | None:
    """One manifest, or None."""
    return next((found for found in select_kind(manifests, kind) if objects.name_of(found) == name), None)
