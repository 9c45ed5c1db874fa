"""The manifests of Tekton's module, copied from the module's folder when it is built.

Nothing of it is in the repository. The manifests name images by the Go package that is in them, as Tekton's developers
install it: the caller gives each package an image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

#: Part of the component's fingerprint; another value makes new copies.
FORMAT = "tekton-1"
#: Prefix of an image's name: the Go package of the image's program follows.
IMAGE_OF_PACKAGE = "ko://"

_FOLDERS = ("config/100-namespace", "config/300-crds", "config")
#: Not needed for one webhook and one controller.
_LEFT_OUT = ("events.yaml", "webhook-hpa.yaml")
_FILE = "manifests.json"


def copy(module: Path, folder: Path) -> None:
    """Read the module's YAML and write it as one JSON file into ``folder``."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: list[dict[str, Any]] = []
    for path in (path for name in _FOLDERS for path in sorted((module / name).glob("*.yaml"))):
        if path.name not in _LEFT_OUT:
            with path.open(encoding="utf-8") as file:
                found += [document for document in yaml.load_all(file, Loader=loader) if document]
    if not any(document["kind"] == "CustomResourceDefinition" for document in found):
        raise FileNotFoundError(f"Tekton's module has no CustomResourceDefinition in {module}")
    (folder / _FILE).write_text(json.dumps(found), encoding="utf-8")


def manifests(folder: Path, images: dict[str, str]) -> list[dict[str, Any]]:
    """Tekton's manifests, in the order in which they are applied.

    Args:
        folder: Of the built component.
        images: Name of a program to the image that has it; programs that no run needs get an image that does not exist.
    """
    text = (folder / _FILE).read_text(encoding="utf-8")
    package = "github.com/tektoncd/pipeline/cmd/"
    for program, image in images.items():
        text = text.replace(f'"{IMAGE_OF_PACKAGE}{package}{program}"', json.dumps(image))
    found: list[dict[str, Any]] = json.loads(text.replace(IMAGE_OF_PACKAGE, "registry.invalid/"))
    return found
