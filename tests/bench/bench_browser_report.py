"""Report pages in a real Chromium: network requests, axe's accessibility rules, overflow, search and pictures.

``python -m tests.bench.bench_browser_report RUN_DIR [RUN_DIR ...] [--out DIR]``

It needs ``chromium``, ``node`` and ``npm`` on the PATH (Debian: ``apt-get install chromium nodejs npm``) and installs
axe-core and playwright-core (which drives the browser that is there) into a temporary folder. A program and not a test:
machines that run the tests have no browser.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PACKAGES = ("playwright-core@1.65.1", "axe-core@4.14.1")
SCRIPT = Path(__file__).with_name("browser_report.mjs")
_SERIOUS = ("serious", "critical")


def measure(pages: list[Path], out: Path) -> list[dict[str, Any]]:
    """What the browser found, four results per page: desktop and phone width, light and dark."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("there is no Chromium on the PATH; Debian: apt-get install chromium")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as modules:
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", modules, *PACKAGES]
        subprocess.run(install, check=True)
        command = ["node", str(SCRIPT), modules, chromium, str(out), *(str(page.resolve()) for page in pages)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def problems(result: dict[str, Any]) -> list[str]:
    """One line per defect."""
    found = [f"request to {url}" for url in result["requests"]] + [f"script: {one}" for one in result["errors"]]
    if result["overflow"] > 0:
        found.append(f"{result['overflow']} px wider than the screen")
    if result["search"]:
        found.append(f"the search for a check that does not exist leaves {result['search']} rows")
    found += [
        f"axe {one['impact']}: {one['id']} at {one['nodes']} places, first {one['example']}"
        for one in result["violations"]
        if one["impact"] in _SERIOUS
    ]
    return found


def main() -> int:
    """Print a line per page and view; return 1 where there is a defect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, default=Path("browser-report"), help="folder for the pictures")
    given = parser.parse_args()
    results = measure([run_dir / "report.html" for run_dir in given.run_dirs], given.out)
    failed = False
    for result in results:
        found = problems(result)
        failed |= bool(found)
        minor = ", ".join(f"{one['id']} ({one['impact']})" for one in result["violations"]) or "none"
        sys.stdout.write(
            f"{Path(result['file']).parent.name:<24} {result['width']:>5} {result['colorScheme']:<5} "
            f"requests {len(result['requests'])}, axe rules passed {result['passes']}, violations {minor}\n"
        )
        sys.stdout.writelines(f"    {line}\n" for line in found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
