"""How much of a build is done, and how long the rest takes, by the size of the source that is compiled."""

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
#: Before this share is built, the pace says little.
_PACE_KNOWN = 0.1
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
        self._sizes: dict[str, int] = {}
        self._first_s = 0.0

    def describe(self) -> str:
        """Packages that are compiled, and the minutes that remain, where they are known."""
        self._look_up_sizes()
        started = [line for line in read_lines(self._log) if not line.startswith(_MESSAGE)]
        if not started:
            return "loading the modules"
        self._first_s = self._first_s or time.monotonic()
        left_s = estimate_left_s(share_built(started, self._sizes), time.monotonic() - self._first_s)
        about = f", about {max(1, round(left_s / 60))} min remain" if left_s is not None else ""
        return f"{len(started)} packages compiled{about}"

    def _look_up_sizes(self) -> None:
        # At once: the list needs the modules too, and unpacks half of them while the build works in one thread.
        if self._process is None:
            self._process = self._list_packages(self._listing)
        if not self._sizes and self._process.poll() == 0:
            self._sizes = parse_sizes(read_lines(self._listing))

    def close(self) -> None:
        """End the listing, where it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def read_lines(file: Path) -> list[str]:
    """The lines of a file that another process may be writing."""
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


def parse_sizes(listing: Iterable[str]) -> dict[str, int]:
    """Bytes of source of each package in the output of ``go list -f`` with `LISTING`."""
    sizes = {}
    for line in listing:
        package, folder, *files = line.split("|")
        sizes[package] = sum((Path(folder) / file).stat().st_size for file in files if file)
    return sizes


def share_built(started: Iterable[str], sizes: Mapping[str, int]) -> float | None:
    """The share that is built; None where it is not known.

    Args:
        started: The packages whose compilation has begun.
        sizes: Bytes of source of all packages; empty while they are not known.
    """
    built = {package for package in started if package in sizes}
    if _OF_EVERY_PROGRAM not in built:
        return None
    return _SHARE_BEFORE_LINKING * sum(sizes[package] for package in built) / sum(sizes.values())


def estimate_left_s(share: float | None, elapsed_s: float) -> float | None:
    """Seconds that remain at the pace so far; None while that is not known.

    Args:
        share: What is built, if known.
        elapsed_s: Since the first package.
    """
    if share is None or share < _PACE_KNOWN:
        return None
    return elapsed_s * (1 - share) / share
