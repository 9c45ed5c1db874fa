"""The scripts in fixtures/ that run in pods, imported as there: from folders that are on the path together."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pytest_vllm_stage.core.paths import fixtures_dir

FOLDERS = ("minio", "benchmarking", "s3-client")


@contextmanager
def pod_scripts(*names: str) -> Iterator[dict[str, Any]]:
    """Modules by name; they are forgotten afterwards."""
    paths = [str(fixtures_dir() / folder) for folder in FOLDERS]
    sys.path[:0] = paths
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        for path in paths:
            sys.path.remove(path)
        for name in names:
            sys.modules.pop(name, None)
