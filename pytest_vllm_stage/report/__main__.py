"""``python -m pytest_vllm_stage.report RUN_DIR [--compare RUN_DIR]``: make the reports of a run (again)."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.report.documents import write_reports
from pytest_vllm_stage.report.index import remove_old_runs, write_index


def main(arguments: list[str] | None = None) -> int:
    """Write the reports; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pytest_vllm_stage.report", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of a run, for example reports/RUN-ID")
    parser.add_argument("--compare", type=Path, metavar="RUN_DIR", help="another run to compare each load step with")
    parser.add_argument("--index", action="store_true", help="update index.html of the folder that holds the run too")
    parser.add_argument(
        "--keep-reports", type=_count, metavar="N", help="with --index: remove the oldest runs of that folder beyond N"
    )
    given = parser.parse_args(arguments)
    if given.keep_reports and not given.index:
        parser.error("--keep-reports needs --index")
    started = time.monotonic()
    try:
        written = write_reports(given.run_dir, compare=given.compare)
        if given.index:
            written.append(_update_index(given.run_dir.resolve(), given.keep_reports))
    except StageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for path in written:
        sys.stdout.write(f"{path}  {path.stat().st_size / 1000:.0f} kB\n")
    sys.stdout.write(f"made in {time.monotonic() - started:.1f} s\n")
    return 0


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _update_index(run_dir: Path, keep: int | None) -> Path:
    removed = remove_old_runs(run_dir.parent, keep, run_dir.name) if keep else []
    if removed:
        sys.stdout.write(f"removed {len(removed)} old runs: {', '.join(removed)}\n")
    return write_index(run_dir.parent)


if __name__ == "__main__":
    sys.exit(main())
