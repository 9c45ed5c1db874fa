"""What the plugin and its dependencies cost: loading it, collecting the suites, importing each library, installing it.

Run ``python tests/bench/bench_plugin_load.py``; exits 1 above the budget. Costs are processor time, and runs with and
without the plugin alternate, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

BUDGET_MS = 15.0
#: The libraries that the package uses; an import in a process of its own for each.
LIBRARIES = ("kubernetes.dynamic", "boto3", "httpx", "hypothesis", "model_registry", "pydantic", "allure_pytest.plugin")


def cpu_ms(folder: str, *arguments: str) -> float:
    """User and system time of one Python process."""
    # Compiled once, as in an ordinary installation.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"python {' '.join(arguments)} ended with {process.returncode}")
    return (usage.ru_utime + usage.ru_stime) * 1000


def plugin_load_ms(folder: str, pairs: int) -> float:
    """``pytest -VV`` (which, unlike a single ``--version``, loads plugins) with the plugin, less without it.

    Of each the cheapest run: other work on the machine only ever adds.
    """
    load, without = ("-m", "pytest", "-VV"), ("-p", "no:vllm_stage")
    cpu_ms(folder, *load)
    runs = [(cpu_ms(folder, *load), cpu_ms(folder, *load, *without)) for _ in range(pairs)]
    return min(run[0] for run in runs) - min(run[1] for run in runs)


def collection_ms(repeats: int) -> float:
    """Collecting the suites, less a pytest that collects nothing: what each worker of a run pays at its start."""
    collect = ("-m", "pytest", "--collect-only", "-qq", "-n0", "-p", "no:cacheprovider")
    folder, nothing = str(Path(__file__).parents[2]), ("-VV",)
    cpu_ms(folder, *collect, "suites")
    runs = [(cpu_ms(folder, *collect, "suites"), cpu_ms(folder, "-m", "pytest", *nothing)) for _ in range(repeats)]
    return min(run[0] for run in runs) - min(run[1] for run in runs)


def installed_mb() -> float:
    """Size of everything installed in this environment, bytecode left out."""
    files = Path(sysconfig.get_paths()["purelib"]).rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file() and path.suffix != ".pyc") / 1e6


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--collection", action="store_true", help="also what each worker pays to collect the suites")
    parser.add_argument("--libraries", action="store_true", help="also the imports of libraries, and installed size")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        load_ms = plugin_load_ms(folder, options.pairs)
        print(f"plugin load: {load_ms:.1f} ms, the best of {options.pairs} pairs (budget {BUDGET_MS:g} ms)")  # noqa: T201
        if options.collection:
            print(f"collection of the suites: {collection_ms(options.pairs):.0f} ms, the best of {options.pairs} pairs")  # noqa: T201
        if options.libraries:
            bare_ms = min(cpu_ms(folder, "-c", "pass") for _ in range(5))
            for name in LIBRARIES:
                cost_ms = min(cpu_ms(folder, "-c", f"import {name}") for _ in range(3)) - bare_ms
                print(f"import {name}: {cost_ms:.0f} ms")  # noqa: T201
            print(f"installed: {installed_mb():.0f} MB")  # noqa: T201
    return 0 if load_ms <= BUDGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())
