"""Report pages in a real Chromium: network requests, axe's accessibility rules, overflow, search and pictures.

``python -m tests.bench.bench_browser_report RUN_DIR [RUN_DIR ...] [--out DIR]``
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.real.browser.pages import MISSING, Visit, find_chromium, list_problems, visit_pages


def main() -> int:
    """Print a line per page and view; return 1 where there is a defect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, default=Path("browser-report"), help="folder for the pictures")
    given = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit(MISSING)
    given.out.mkdir(parents=True, exist_ok=True)
    visits = [
        Visit(run_dir / "report.html", width, scheme, picture=given.out / f"{run_dir.name}-{width}-{scheme}.png")
        for run_dir in given.run_dirs
        for width in (1280, 390)
        for scheme in ("light", "dark")
    ]
    failed = False
    for result in visit_pages(chromium, visits):
        problems, axe = list_problems(result), result["axe"]
        failed |= bool(problems)
        minor = ", ".join(f"{one['id']} ({one['impact']})" for one in axe["violations"]) or "none"
        sys.stdout.write(
            f"{Path(result['file']).parent.name:<24} {result['width']:>5} {result['scheme']:<5} requests "
            f"{len(result['requests'])}, axe {axe['version']}: {axe['passes']} rules passed, violations {minor}\n"
        )
        sys.stdout.writelines(f"    {line}\n" for line in problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
