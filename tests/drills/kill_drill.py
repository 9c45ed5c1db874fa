"""Kill the whole pytest with SIGKILL at eleven moments of a run; the next run must pass and nothing may be left.

Run ``python tests/drills/kill_drill.py [MOMENT ...]`` as root with warm caches; about two minutes a moment. Each
moment is a progress line and a delay after it. A listing of processes, mounts, namespaces, links, cgroups, routes and
iptables rules is taken before the first run and compared after each recovery.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pytest_vllm_stage.cluster.local import listing
from pytest_vllm_stage.core.paths import cache_dir

ROOT = Path(__file__).parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
#: A run that reaches no moment within this time has failed by itself.
DEADLINE_S = 900


class Moment(NamedTuple):
    """When to kill: ``delay_s`` after the first progress line of ``suite`` that matches ``line``, after ``prepare``."""

    line: str
    delay_s: float
    prepare: Callable[[], None] = lambda: None
    suite: str = "suites/deployment"


def forget(pattern: str) -> Callable[[], None]:
    """Remove something from the cache, so that the run has to build it again."""

    def remove() -> None:
        found = [path for path in cache_dir().glob(pattern) if path.is_dir()]
        if not found:
            raise SystemExit(f"nothing in the cache matches {pattern}: this moment cannot be reached")
        for path in found:
            shutil.rmtree(path)

    return remove


MOMENTS = {
    "build": Moment(r"step: components \.\.\.", 2.0, forget("components/etcd-*")),
    "weights": Moment(r"step: engine \.\.\.", 4.0, forget("weights/*")),
    "cluster-first-moment": Moment(r"step: cluster \.\.\.", 0.1),
    "cluster-processes-starting": Moment(r"step: cluster \.\.\.", 1.5),
    "cluster-nearly-up": Moment(r"step: cluster \.\.\.", 5.0),
    "deploy-first-moment": Moment(r"step: deploy \.\.\.", 0.5),
    "deploy-downloads": Moment(r"step: deploy \.\.\.", 6.0),
    "deploy-engines-starting": Moment(r"step: deploy \.\.\.", 25.0),
    "tests": Moment(r"step: deploy: done", 6.0),
    "load": Moment(r"load .*-rate-5 \.\.\.", 5.0, suite="suites/slo"),
    "teardown": Moment(r"step: teardown \.\.\.", 0.3),
}


def killed_run(moment: Moment) -> str:
    """Start a run, kill its process group at the moment, return the progress seen."""
    moment.prepare()
    process = subprocess.Popen(
        [*PYTEST, moment.suite],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    watchdog = threading.Timer(DEADLINE_S, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    seen = []
    assert process.stderr
    for line in process.stderr:
        seen.append(line)
        if re.search(moment.line, line):
            time.sleep(moment.delay_s)
            break
    else:
        raise SystemExit(f"the run ended before {moment.line!r}:\n{''.join(seen[-20:])}")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    watchdog.cancel()
    return "".join(seen)


def recovery() -> tuple[int, str]:
    """The next run; its exit status and whole output."""
    done = subprocess.run(
        [*PYTEST, "suites", "-m", "smoke"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def main(names: list[str]) -> int:
    """Go through the moments; print a row for each; 1 if any left something or was not followed by a green run."""
    before = listing.snapshot()
    failed = 0
    for name in names or list(MOMENTS):
        started = time.monotonic()
        killed_run(MOMENTS[name])
        status, output = recovery()
        # Objects that have disappeared belonged to another process.
        left = [line for line in listing.difference(before, listing.snapshot()) if line.startswith("+")]
        swept = re.findall("removed the leftovers of a killed run: (.*)", output)
        good = status == 0 and not left
        failed += not good
        print(  # noqa: T201
            f"{name:<28} next run {'green' if status == 0 else f'exit {status}'}, "
            f"swept {len(swept)}, left {left or 'nothing'}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
        if not good:
            print(output[-3000:], flush=True)  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
