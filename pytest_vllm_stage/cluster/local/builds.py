"""Runs the builds of several Go modules at the same time, and reports what remains of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_vllm_stage.cluster.local.component import ENVIRONMENT, FLAGS, Component
from pytest_vllm_stage.core import build_once
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal

#: More builds at a time would compile shared packages more often than they fill the two cores of a small machine.
_AT_A_TIME = 2
#: A build takes up to this much memory, most of it for linking.
_MEMORY_BYTES = 2_500_000_000
_MEMORY = Path("/proc/meminfo")
#: The compiler lives for a second: collecting its garbage less often saves a fifth of its time, at 50 MB a process. The
#: limit makes a linker of a large program collect before it takes more memory than that.
_COLLECTOR = {"GOGC": "400", "GOMEMLIMIT": "2GiB"}
_INTERVAL_S = 0.2
_LOG_LINES = 15
#: Packages of a group, and seconds of its build on two quiet cores with empty caches, for the estimate of what remains.
_PACKAGES = {"glue": 60, "etcd": 581, "kubernetes": 2658, "coredns": 737, "kserve": 1505, "minio": 1300}
_PACKAGES_BY_DEFAULT = 1000
_EXPECTED_S = {"glue": 5.0, "etcd": 40.0, "kubernetes": 220.0, "coredns": 35.0, "kserve": 70.0, "minio": 65.0}
_EXPECTED_BY_DEFAULT_S = 60.0
#: The programs are linked when all packages are compiled.
_SHARE_BEFORE_LINKING = 0.95
#: Before this share is built, the pace says little.
_PACE_KNOWN = 0.1


class GroupBuild:
    """The build of the missing components of one ``go.mod``, by one command.

    Args:
        components: The components; all of one group.
        linker_flags: Options of the linker.
        go: The tool chain.
    """

    def __init__(self, components: Sequence[Component], linker_flags: str, go: Path) -> None:
        self.group = components[0].group
        self._components = list(components)
        self._linker_flags = linker_flags
        self._go = go
        self._parent = components[0].folder.parent
        self._draft = self._parent / f".building-{self.group}"
        self._log = self._parent / f"{self.group}.log"
        self._lock = FileLock(self._parent / f"{self.group}.lock")
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0

    @property
    def missing(self) -> list[Component]:
        """The components that are not built yet."""
        return [component for component in self._components if not component.folder.exists()]

    @property
    def programs(self) -> list[str]:
        """The programs that are not built yet."""
        return [program for component in self.missing for program in component.programs]

    @property
    def running(self) -> bool:
        """Whether the command was started and not finished."""
        return self._process is not None

    @property
    def compiled(self) -> int:
        """Packages compiled so far; those that Go's cache has are not among them."""
        return _count_lines(self._log) if self.running else 0

    @property
    def expected_s(self) -> float:
        """Seconds of the whole build on two quiet cores."""
        return _EXPECTED_S.get(self.group, _EXPECTED_BY_DEFAULT_S)

    @property
    def share(self) -> float:
        """How much of it is built, by packages."""
        return min(_SHARE_BEFORE_LINKING, self.compiled / _PACKAGES.get(self.group, _PACKAGES_BY_DEFAULT))

    def start(self) -> bool:
        """Start it; False while another run builds the group."""
        self._parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        if not self.missing:  # the other run has ended meanwhile
            self._lock.release()
            return False
        self._started_s = time.monotonic()
        self._process = self._run()
        return True

    def _run(self) -> subprocess.Popen[bytes]:
        # In the draft, where the next run finds and removes what a killed compiler leaves.
        shutil.rmtree(self._draft, ignore_errors=True)
        scratch, built = self._draft / "scratch", self._draft / "built"
        for folder in (scratch, built):
            folder.mkdir(parents=True)
        packages = [package for component in self.missing for package in component.programs.values()]
        command = [str(self._go), "build", "-v", *FLAGS, f"-ldflags={self._linker_flags}", "-o", f"{built}/", *packages]
        with self._log.open("wb") as output:
            return subprocess.Popen(
                [*build_once.end_with_this_process(), *command],
                cwd=self._components[0].source,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment() | {"GOTMPDIR": str(scratch)},
                start_new_session=True,
            )

    def download(self) -> subprocess.Popen[bytes]:
        """Download the modules that it needs, while others are built; what fails here is repeated by its build."""
        packages = [package for component in self.missing for package in component.programs.values()]
        return subprocess.Popen(
            [*build_once.end_with_this_process(), str(self._go), "list", "-mod=readonly", "-deps", *packages],
            cwd=self._components[0].source,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,
        )

    def finish_if_ended(self, journal: Journal) -> None:
        """Once the command has ended, put its programs where this and later runs find them.

        Raises:
            EnvironmentUnusable: the build failed; it shows the last lines and names the log.
        """
        if self._process is None or self._process.poll() is None:
            return
        failed = self._process.returncode
        outcome = EnvironmentUnusable.kind if failed else "done"
        duration_s = time.monotonic() - self._started_s
        titles = ", ".join(component.title for component in self.missing)
        journal.event("phase", f"build {titles}", duration_s=round(duration_s, 3), outcome=outcome)
        journal.say(f"build {titles}: {outcome} in {duration_s:.1f} s")
        if failed:
            tail = "\n  ".join(_tail(self._log, _LOG_LINES))
            raise EnvironmentUnusable(
                f"build of {titles} failed (go build exited with {failed})\n  {tail}\n  log: {self._log}",
                hint="if a download failed, run the command again",
            )
        for component in self.missing:
            self._place(component)
        self.end()

    def _place(self, component: Component) -> None:
        finished = self._draft / component.name
        finished.mkdir()
        for program, package in component.programs.items():
            (self._draft / "built" / _executable_of(package)).rename(finished / program)
        if component.more_files:
            component.more_files(_module_folder(component, self._go), finished)
        finished.rename(component.folder)

    def end(self) -> None:
        """End the command, where it still runs, and let other runs build the group."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            shutil.rmtree(self._draft, ignore_errors=True)
        self._lock.release()


def build_all(groups: Sequence[GroupBuild], journal: Journal) -> None:
    """Build all groups, several at a time and the longest first; the modules of the others are downloaded meanwhile.

    Raises:
        EnvironmentUnusable: a build failed; the others are ended.
    """
    with ExitStack() as stack, journal.activity("components") as activity:
        groups = sorted(groups, key=lambda one: -one.expected_s)
        at_a_time = _count_builds_at_a_time()
        for group in groups:
            stack.callback(group.end)
        for group in groups[at_a_time:]:
            stack.callback(_end, group.download())
        while remaining := [group for group in groups if group.missing]:
            for group in remaining:
                if group.running:
                    group.finish_if_ended(journal)
                elif sum(one.running for one in remaining) < at_a_time:
                    group.start()
            activity.update(describe_remaining(groups, activity.elapsed_s))
            time.sleep(_INTERVAL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def describe_remaining(groups: Sequence[GroupBuild], elapsed_s: float) -> str:
    """The state of the builds in a line; the time that remains follows the pace so far."""
    remaining = [program for group in groups for program in group.programs]
    working = [f"{group.group} ({group.compiled} packages compiled)" for group in groups if group.running]
    state = ", ".join(working) or "waiting for another run, which builds them"
    left_s = estimate_left_s([(group.expected_s, group.share if group.missing else 1.0) for group in groups], elapsed_s)
    programs = f"{len(remaining)} programs remain" if len(remaining) != 1 else "1 program remains"
    return f"{programs}, about {max(1, round(left_s / 60))} min: {state}"


def estimate_left_s(parts: Sequence[tuple[float, float]], elapsed_s: float) -> float:
    """Seconds until everything is built.

    Args:
        parts: Expected seconds and built share of each build.
        elapsed_s: How long the builds have taken so far.
    """
    whole_s = sum(expected_s for expected_s, _ in parts)
    built_s = sum(expected_s * share for expected_s, share in parts)
    pace = elapsed_s / built_s if built_s > _PACE_KNOWN * whole_s else 1.0
    return (whole_s - built_s) * pace


def _count_builds_at_a_time() -> int:
    return _AT_A_TIME if _available_bytes() >= _AT_A_TIME * _MEMORY_BYTES else 1


def _available_bytes() -> int:
    """Memory that programs can have, the page cache included, which a download has just filled."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _MEMORY.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def _executable_of(package: str) -> str:
    """The name that Go gives a program: the last element of the package's path that is not a major version."""
    names = [name for name in package.split("/") if not re.fullmatch(r"v[0-9]+", name)]
    return names[-1]


def _module_folder(component: Component, go: Path) -> Path:
    command = [str(go), "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", component.module]
    result = subprocess.run(
        command, cwd=component.source, capture_output=True, text=True, check=False, env=_environment()
    )
    if result.returncode:
        raise EnvironmentUnusable(f"go list -m {component.module}: {result.stderr.strip()[-500:]}")
    return Path(result.stdout.strip())


def _environment() -> dict[str, str]:
    # A GOROOT names another tool chain than the one that was found.
    return _COLLECTOR | {name: value for name, value in os.environ.items() if name != "GOROOT"} | ENVIRONMENT


def _count_lines(log: Path) -> int:
    return log.read_bytes().count(b"\n")


def _tail(log: Path, count: int) -> list[str]:
    with log.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip() for line in deque(file, count)]
