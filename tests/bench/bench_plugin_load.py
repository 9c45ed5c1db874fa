"""What loading the plugin costs: the median of paired runs of an empty collection with and without it.

Run ``python tests/bench/bench_plugin_load.py``; exits 1 above the budget. Pairs alternate, so that a slow moment of a
shared machine hits both sides.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

BUDGET_MS = 30.0


def once_ms(folder: str, *arguments: str) -> float:
    """Wall time of one ``pytest -VV`` (which, unlike a single ``--version``, loads plugins)."""
    command = [sys.executable, "-m", "pytest", "-VV", *arguments]
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (time.perf_counter() - started) * 1000


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=25)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as folder:
        once_ms(folder)
        added = [once_ms(folder) - once_ms(folder, "-p", "no:vllm_stage") for _ in range(pairs)]
    median_ms = statistics.median(added)
    print(f"plugin load: median {median_ms:.1f} ms over {pairs} pairs (budget {BUDGET_MS:g} ms)")  # noqa: T201
    return 0 if median_ms <= BUDGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())
