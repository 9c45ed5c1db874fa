"""How much of a build is done, and how long the rest takes, by the source that is compiled."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

#: For ``go list -f``: a package, its folder and its source files.
LISTING = '{{.ImportPath}}|{{.Dir}}|{{join .GoFiles "|"}}'
#: Every program needs this package, and it is among the first compiled. Where it is not compiled, Go's cache has other
#: packages too, and how many is not known.
_OF_EVERY_PROGRAM = "runtime"
#: Starting the compiler and reading what a package imports takes as long as compiling this much source.
_BYTES_PER_PACKAGE = 20_000
#: The first packages, with the standard library, compile faster than the others: an estimate by their pace was half of
#: the time that remained. From here on it was wrong by a third at most, and by 39 % where the machine's load halved.
_PACE_KNOWN = 0.35
#: The programs are linked when their last packages are compiled.
_SHARE_BEFORE_LINKING = 0.95
#: Lines of the log that name no package.
_MESSAGE = "go: "


class BuildProgress:
    """The progress of one build.

    Args:
        log: What ``go build -v`` prints: each package when its compilation begins.
        listing: Receives the list of the packages.
        list_packages: Starts ``go list`` for the same packages with `LISTING`; its output goes to the file.
    """

    def __init__(self, log: Path, listing: Path, list_packages: Callable[[Path], subprocess.Popen[bytes]]) -> None:
        self._log = log
        self._listing = listing
        self._list_packages = list_packages
        self._process: subprocess.Popen[bytes] | None = None
        self._costs: dict[str, int] = {}
        self._first_s = 0.0

    def describe(self) -> str:
        """Packages that are compiled, and the minutes that remain, where they are known."""
        self._look_up_costs()
        started = [line for line in read_lines(self._log) if not line.startswith(_MESSAGE)]
        if not started:
            return "loading the modules"
        self._first_s = self._first_s or time.monotonic()
        left_s = estimate_left_s(share_built(started, self._costs), time.monotonic() - self._first_s)
        about = f", about {max(1, round(left_s / 60))} min remain" if left_s is not None else ""
        return f"{len(started)} packages compiled{about}"

    def _look_up_costs(self) -> None:
        # At once: the list needs the modules too, and unpacks half of them while the build works in one thread.
        if self._process is None:
            self._process = self._list_packages(self._listing)
        if not self._costs and self._process.poll() == 0:
            self._costs = parse_costs(read_lines(self._listing))

    def close(self) -> None:
        """End the listing, where it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def read_lines(file: Path) -> list[str]:
    """The lines of a file that another process may be writing."""
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


def parse_costs(listing: Iterable[str]) -> dict[str, int]:
    """What compiling each package costs, in bytes of source, from the output of ``go list -f`` with `LISTING`."""
    costs = {}
    for line in listing:
        package, folder, *files = line.split("|")
        size = sum((Path(folder) / file).stat().st_size for file in files if file)
        costs[package] = _BYTES_PER_PACKAGE + size
    return costs


def share_built(started: Iterable[str], costs: Mapping[str, int]) -> float | None:
    """The share that is built; None where it is not known.

    Args:
        started: The packages whose compilation has begun.
        costs: What compiling each package costs; empty while that is not known.
    """
    built = {package for package in started if package in costs}
    if _OF_EVERY_PROGRAM not in built:
        return None
    return _SHARE_BEFORE_LINKING * sum(costs[package] for package in built) / sum(costs.values())


def estimate_left_s(share: float | None, elapsed_s: float) -> float | None:
    """Seconds that remain at the pace so far; None while that is not known.

    Args:
        share: What is built, if known.
        elapsed_s: Since the first package.
    """
    if share is None or share < _PACE_KNOWN:
        return None
    return elapsed_s * (1 - share) / share
