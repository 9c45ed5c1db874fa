"""Pages as a real Chromium shows them: requests, script errors, axe's accessibility rules, overflow and pictures.

Playwright, which drives the browser, and axe are in an environment of their own, created once by uv from hash-checked
pins. This command in this folder creates the pins::

    uv pip compile --python-version 3.11 --python-platform x86_64-manylinux_2_31 --only-binary :all: \
        --generate-hashes --no-annotate --no-header requirements.in -o requirements.txt
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.journal import Journal
from tests import own_environment

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
MISSING = f"no Chromium on the PATH ({', '.join(PROGRAMS)}); Debian: apt-get install chromium"
_SERIOUS = ("serious", "critical")
#: The rules of accessibility take half a minute for a large page on a busy machine.
_TIMEOUT_S = 900.0


def find_chromium() -> str | None:
    """Path of the browser's program; None where there is none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


@dataclass(frozen=True)
class Visit:
    """A page in a view.

    Attributes:
        file: The page.
        width: Of the window in pixels.
        scheme: ``light`` or ``dark``.
        axe: Run the rules of accessibility, which takes half a minute for a large page.
        picture: Where its picture goes.
    """

    file: Path
    width: int = 1280
    scheme: str = "light"
    axe: bool = True
    picture: Path | None = None


def visit_pages(chromium: str, visits: Sequence[Visit]) -> list[dict[str, Any]]:
    """What the browser found at each visit; see `visit`."""
    python = own_environment.ensure("browser", REQUIREMENTS, Journal()) / "python"
    asked = [
        asdict(one) | {"file": str(one.file.resolve()), "picture": str(one.picture) if one.picture else None}
        for one in visits
    ]
    command = [str(python), str(Path(__file__).with_name("visit.py")), chromium]
    done = subprocess.run(
        command, input=json.dumps(asked), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}\n{done.stderr[-2000:]}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def list_problems(result: dict[str, Any]) -> list[str]:
    """One line per defect of a page in a view."""
    found = [f"request to {url}" for url in result["requests"]] + [f"script: {one}" for one in result["errors"]]
    if result["too_wide"] > 0:
        found.append(f"{result['too_wide']} px wider than the screen")
    if result["too_wide_printed"] > 0:
        found.append(f"{result['too_wide_printed']} px wider than the sheet when printed")
    if result["found_rows"]:
        found.append(f"the search for a check that does not exist leaves {result['found_rows']} rows")
    found += [
        f"axe {one['impact']}: {one['id']} at {one['nodes']} places, first {one['example']}"
        for one in (result["axe"] or {"violations": []})["violations"]
        if one["impact"] in _SERIOUS
    ]
    return found
