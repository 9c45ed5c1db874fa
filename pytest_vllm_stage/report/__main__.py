"""``python -m pytest_vllm_stage.report RUN_DIR``: make the reports of a run again, or for the first time."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.report.documents import write_reports


def main(arguments: list[str] | None = None) -> int:
    """Write the reports; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pytest_vllm_stage.report", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a run, for example reports/RUN-ID")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        written = write_reports(given.run_dir)
    except StageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for path in written:
        sys.stdout.write(f"{path}  {path.stat().st_size / 1000:.0f} kB\n")
    sys.stdout.write(f"made in {time.monotonic() - started:.1f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
