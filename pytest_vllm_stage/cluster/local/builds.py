"""Builds components with Go, a command per ``go.mod``, and reports what remains."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from pytest_vllm_stage.cluster.local.build_progress import LISTING, BuildProgress, read_lines
from pytest_vllm_stage.cluster.local.component import ENVIRONMENT, FLAGS, Component
from pytest_vllm_stage.core import build_once
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal

#: A compiler takes up to this much memory, and a linker for a large program too.
_MEMORY_BYTES = 1_500_000_000
_MEMORY = Path("/proc/meminfo")
#: A compiler lives for a second and works on one package. Collecting its garbage less often and in one thread saves a
#: third of its time; the limit makes the linker of a large program collect before it takes more memory than that.
_RUNTIME = {"GOGC": "400", "GOMEMLIMIT": "2GiB", "GOMAXPROCS": "1"}
_INTERVAL_S = 0.2
_LOG_LINES = 15

_Output = IO[bytes] | int


class GroupBuild:
    """The build of the missing components of one ``go.mod``, by one command.

    Args:
        components: The components; all of one group.
        linker_flags: Options of the linker.
        go: The tool chain.
    """

    def __init__(self, components: Sequence[Component], linker_flags: str, go: Path) -> None:
        self.group = components[0].group
        # Each folder is looked for several times a second; its name has the hash of all pins.
        self._folders = [(component, component.folder) for component in components]
        self._linker_flags = linker_flags
        self._go = go
        self._source = components[0].source
        self._parent = components[0].folder.parent
        self._draft = self._parent / f".building-{self.group}"
        self._log = self._parent / f"{self.group}.log"
        self._lock = FileLock(self._parent / f"{self.group}.lock")
        self._process: subprocess.Popen[bytes] | None = None
        self._progress = BuildProgress(self._log, self._draft / "packages", self._list_packages)
        self._started_s = 0.0

    @property
    def missing(self) -> list[Component]:
        """The components that are not built yet."""
        return [component for component, folder in self._folders if not folder.exists()]

    @property
    def programs(self) -> list[str]:
        """The programs that are not built yet."""
        return [program for component in self.missing for program in component.programs]

    @property
    def running(self) -> bool:
        """Whether the command was started and not finished."""
        return self._process is not None

    @property
    def progress(self) -> str:
        """Its state in a few words."""
        return f"{self.group} ({self._progress.describe()})"

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
        self._process = self._build()
        return True

    def _build(self) -> subprocess.Popen[bytes]:
        # In the draft, where the next run finds and removes what a killed compiler leaves.
        shutil.rmtree(self._draft, ignore_errors=True)
        scratch, built = self._draft / "scratch", self._draft / "built"
        for folder in (scratch, built):
            folder.mkdir(parents=True)
        options = ["-v", f"-p={count_processes()}", f"-ldflags={self._linker_flags}", "-o", f"{built}/"]
        environment = _RUNTIME | _environment() | {"GOTMPDIR": str(scratch)}
        with self._log.open("wb") as output:
            return self._start_go("build", options, environment, output, output)

    def _list_packages(self, file: Path) -> subprocess.Popen[bytes]:
        with file.open("wb") as output:
            return self._start_go("list", ["-deps", "-f", LISTING], _environment(), output, subprocess.DEVNULL)

    def _start_go(
        self, verb: str, options: list[str], environment: dict[str, str], stdout: _Output, stderr: _Output
    ) -> subprocess.Popen[bytes]:
        # The last has the package that takes longest to compile, on one core: first, others are compiled meanwhile.
        packages = [package for component in reversed(self.missing) for package in component.programs.values()]
        return subprocess.Popen(
            [*build_once.end_with_this_process(), str(self._go), verb, *FLAGS, *options, *packages],
            cwd=self._source,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=environment,
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
            tail = "\n  ".join(read_lines(self._log)[-_LOG_LINES:])
            raise EnvironmentUnusable(
                f"build of {titles} failed (go build exited with {failed})\n  {tail}\n  log: {self._log}",
                hint="if a download failed, run the command again",
            )
        for component in self.missing:
            self._place(component)
        self.close()

    def _place(self, component: Component) -> None:
        finished = self._draft / component.name
        finished.mkdir()
        for program, package in component.programs.items():
            (self._draft / "built" / _executable_of(package)).rename(finished / program)
        if component.more_files:
            component.more_files(_module_folder(component, self._go), finished)
        finished.rename(component.folder)

    def close(self) -> None:
        """End the command, where it still runs, and let other runs build the group."""
        self._progress.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            shutil.rmtree(self._draft, ignore_errors=True)
        self._lock.release()


def build_all(groups: Sequence[GroupBuild], journal: Journal) -> None:
    """Build each group, and wait for what another run builds.

    Raises:
        EnvironmentUnusable: a build failed.
    """
    with journal.activity("components") as activity:
        for group in groups:
            with closing(group):
                while group.missing:
                    if group.running:
                        group.finish_if_ended(journal)
                    else:
                        group.start()
                    if group.missing:
                        activity.update(describe_remaining(groups))
                        time.sleep(_INTERVAL_S)


def describe_remaining(groups: Sequence[GroupBuild]) -> str:
    """The state of the builds in a line."""
    remaining = [program for group in groups for program in group.programs]
    working = [group.progress for group in groups if group.running]
    state = ", ".join(working) or "waiting for another run, which builds them"
    programs = f"{len(remaining)} programs remain" if len(remaining) != 1 else "1 program remains"
    return f"{programs}: {state}"


def count_processes() -> int:
    """How many compilers and linkers run at the same time: one per core that the available memory suffices for."""
    return max(1, min(len(os.sched_getaffinity(0)), _available_bytes() // _MEMORY_BYTES))


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
    return {name: value for name, value in os.environ.items() if name != "GOROOT"} | ENVIRONMENT
