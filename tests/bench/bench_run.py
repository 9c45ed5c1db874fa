"""How long each phase of a run took, compared with the committed run of the same environment.

Run ``python tests/bench/bench_run.py [reports/RUN]``, by default for the newest run; ``--save`` commits its phases to
``runs.json``. A phase that takes over 30 % and 5 s longer is named; the exit status is 0 all the same, since a shared
machine is often slower.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMMITTED = Path(__file__).with_name("runs.json")
#: A phase is slower when it takes longer by both.
SLOWER_SHARE, SLOWER_S = 0.3, 5.0
#: Building takes longer than this; looking up what was built does not.
WARM_S = 10.0

#: Phases that are recorded, besides the steps, where a first run takes its time.
BUILDS = ("build ", "install ", "engine environment", "model weights")

Phases = dict[str, float]


def phases_of(record: Mapping[str, Any]) -> Phases:
    """Seconds of each step and build, of each suite from the end of the one before it, and of the whole run.

    A suite's time has its fixtures in it, and so the deployment, where the first test of the suite asked for it.
    """
    found: Phases = {f"step {name}": float(took_s) for name, took_s in record["steps"].items()}
    built = [phase for phase in record["phases"] if phase["name"].startswith(BUILDS)]
    # A component's version is not part of the phase's name, so that a new one is compared with the old.
    found |= {re.sub(r" v\d\S*", "", phase["name"]).replace(",", ""): float(phase["duration_s"]) for phase in built}
    began_s = float(record["started_at"])
    suite = ""
    for test in sorted(record["tests"], key=lambda one: float(one["at"])):
        parts = str(test["name"]).split("/")
        suite = f"suite {parts[1] if len(parts) > 2 else parts[0]}"
        found[suite] = found.get(suite, 0.0) + float(test["at"]) - began_s
        began_s = float(test["at"])
    return found | {"whole run": float(record["ended_at"]) - float(record["started_at"])}


def environment_of(record: Mapping[str, Any], cores: int | None = None) -> str:
    """What must be equal for two runs to be compared."""
    built_s = sum(float(record["steps"].get(name, 0.0)) for name in ("packages", "components", "engine"))
    engine = "simulated" if record["simulated"] else "vllm"
    caches = "warm" if built_s < WARM_S else "empty"
    cores_text = f"{cores or os.cpu_count()} cores{' without AVX-512' if record.get('no_avx512') else ''}"
    return f"{cores_text}, {engine} engine, {caches} caches, profile {record['profile']['name']}"


def compare(now: Phases, before: Phases) -> tuple[list[str], list[str]]:
    """A line per phase, and the names of those that are slower."""
    lines, slower = [f"{'phase':24}{'now':>10}{'committed':>12}{'change':>9}"], []
    for name, took_s in now.items():
        known_s = before.get(name)
        change = f"{took_s / known_s - 1:+.0%}" if known_s else ""
        lines.append(f"{name:24}{took_s:8.1f} s{f'{known_s:.1f} s' if known_s is not None else '':>12}{change:>9}")
        if known_s is not None and took_s > known_s * (1 + SLOWER_SHARE) and took_s > known_s + SLOWER_S:
            slower.append(f"{name}: expected about {known_s:.0f} s, took {took_s:.0f} s")
    return lines, slower


def newest_run() -> Path:
    """The folder of the newest run.

    Raises:
        SystemExit: there is none.
    """
    runs = sorted((ROOT / "reports").glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise SystemExit(f"{ROOT / 'reports'} has no run")
    return runs[-1].parent


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, help="the run's directory; default: the newest in reports/")
    parser.add_argument("--save", action="store_true", help="commit the run's phases to runs.json")
    options = parser.parse_args()
    folder = options.run or newest_run()
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    committed: dict[str, Phases] = json.loads(COMMITTED.read_text(encoding="utf-8"))
    key, now = environment_of(record), phases_of(record)
    lines, slower = compare(now, committed.get(key, {}))
    if key not in committed:
        lines.append(f"no committed run of this environment; known: {', '.join(committed) or 'none'}")
    lines += [f"SLOWER: {one}" for one in slower]
    print("\n".join([f"run {record['run_id']}: {key}", *lines]))  # noqa: T201
    if options.save:
        committed[key] = {name: round(took_s, 1) for name, took_s in now.items()}
        COMMITTED.write_text(json.dumps(committed, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
