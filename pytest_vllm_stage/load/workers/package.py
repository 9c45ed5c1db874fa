"""The part of this package that a load worker needs, as a zip archive that Python imports from."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from pytest_vllm_stage.core.paths import PACKAGE

#: Folders whose own modules are packed; they import nothing but the standard library and each other.
_FOLDERS = ("", "core", "settings", "measurement", "load", "load/workers")
_MADE_AT = (1980, 1, 1, 0, 0, 0)


def pack_modules(package: Path = PACKAGE) -> bytes:
    """The archive; the same modules give the same bytes."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for folder in _FOLDERS:
            for path in sorted((package / folder).glob("*.py")):
                name = f"{package.name}/{path.relative_to(package)}"
                archive.writestr(zipfile.ZipInfo(name, _MADE_AT), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return data.getvalue()
