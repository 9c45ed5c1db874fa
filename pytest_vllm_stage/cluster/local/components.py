"""Builds the cluster's programs once, from Go modules pinned by ``go.sum``, into the cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_vllm_stage.cluster.local import gotool, kserve_files, tekton_files
from pytest_vllm_stage.core import build_once
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import PACKAGE, cache_dir

MODULES = PACKAGE / "cluster" / "modules"
#: Unoptimised code compiles in half the time, and one node has little to do.
_FLAGS = ("-mod=readonly", "-trimpath", "-buildvcs=false", "-gcflags=all=-N -l")
#: Static programs: they run in an empty image, and no C compiler is needed.
_ENVIRONMENT = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}
_LOG_LINES = 15
#: Seconds of each build on two quiet cores with empty caches, for the estimate of what remains.
_TAKES_S = {"glue": 5, "etcd": 40, "kubernetes": 220, "coredns": 50, "kserve": 70, "minio": 65}
_TAKES_BY_DEFAULT_S = 60


@dataclass(frozen=True)
class Component:
    """Programs that are built together.

    Attributes:
        name: The folder of its ``go.mod``.
        module: The module that gives its version; empty for our own code.
        programs: Program name to the package that is built for it.
        variables: What the linker sets; ``{version}`` stands for the version.
        more_files: Copies further files of the module's folder next to the programs.
        files_format: Another value rebuilds these files.
    """

    name: str
    module: str
    programs: dict[str, str]
    variables: tuple[str, ...] = ()
    more_files: Callable[[Path, Path], None] | None = None
    files_format: str = ""

    @property
    def source(self) -> Path:
        """The folder with ``go.mod``."""
        return MODULES / self.name

    @property
    def version(self) -> str:
        """The pinned version; empty for our own code."""
        if not self.module:
            return ""
        lines = (self.source / "go.mod").read_text(encoding="utf-8").splitlines()
        return next(line.split()[1] for line in lines if line.strip().startswith(f"{self.module} v"))

    @property
    def linker_flags(self) -> str:
        """No debug symbols, and the version where the program reports one."""
        settings = [f"-X {variable.format(version=self.version)}" for variable in self.variables]
        return " ".join(["-s -w", *settings])

    @property
    def fingerprint(self) -> str:
        """Changes when the built programs would."""
        digest = hashlib.sha256(json.dumps([self.programs, self.linker_flags, _FLAGS, _ENVIRONMENT]).encode())
        for path in sorted(self.source.rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
        digest.update(self.files_format.encode())
        return digest.hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """The folder of the built programs."""
        return cache_dir() / "components" / f"{self.name}-{self.fingerprint}"


_KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
_KUBERNETES_VERSION = tuple(
    f"k8s.io/{package}/version.{setting}"
    for package in ("component-base", "client-go/pkg")
    for setting in ("gitVersion={version}", "gitMajor=1", "gitMinor=34", "gitTreeState=clean")
)

COMPONENTS = (
    Component("glue", "", {"pause": "./pause"}),
    Component("etcd", "go.etcd.io/etcd/server/v3", {"etcd": "go.etcd.io/etcd/server/v3"}),
    Component(
        "kubernetes",
        "k8s.io/kubernetes",
        {name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES},
        _KUBERNETES_VERSION,
    ),
    Component("coredns", "github.com/coredns/coredns", {"coredns": "github.com/coredns/coredns"}),
    Component(
        "kserve",
        "github.com/kserve/kserve",
        {"kserve-manager": "github.com/kserve/kserve/cmd/manager"},
        more_files=kserve_files.copy,
        files_format=kserve_files.FORMAT,
    ),
    Component("minio", "github.com/minio/minio", {"minio": "github.com/minio/minio"}),
)

#: Not part of a cluster: built only when requested by name. Tests run Tekton's controllers and KWOK's fake nodes;
#: --stage-cluster=kind runs kind where none is on the PATH.
EXTRAS = (
    Component("kind", "sigs.k8s.io/kind", {"kind": "sigs.k8s.io/kind"}),
    Component("kwok", "sigs.k8s.io/kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}),
    Component(
        "tekton",
        "github.com/tektoncd/pipeline",
        {name: f"github.com/tektoncd/pipeline/cmd/{name}" for name in ("webhook", "controller", "entrypoint")},
        more_files=tekton_files.copy,
        files_format=tekton_files.FORMAT,
    ),
)


def ensure(journal: Journal, names: Iterable[str] | None = None) -> dict[str, Path]:
    """Build the components that the cache lacks.

    Args:
        journal: Records a phase for each component that is built.
        names: Components to build, `EXTRAS` among them; by default all components of a cluster.

    Returns:
        Program name to path.

    Raises:
        EnvironmentUnusable: no Go, or a build failed; it shows the last lines and names the log.
    """
    wanted = COMPONENTS if names is None else [one for one in (*COMPONENTS, *EXTRAS) if one.name in names]
    missing = [component for component in wanted if not component.folder.exists()]
    if missing:
        go_mods = [(component.source / "go.mod").read_text(encoding="utf-8") for component in missing]
        go = gotool.find(gotool.needed(go_mods), journal)
        started_s = time.monotonic()
        for place, component in enumerate(missing):
            if len(missing) > 1:
                names = [one.name for one in missing]
                journal.say(describe_remaining(names[:place], names[place:], time.monotonic() - started_s))
            _ensure(component, go, journal)
    return {program: component.folder / program for component in wanted for program in component.programs}


def describe_remaining(built: Sequence[str], remaining: Sequence[str], elapsed_s: float) -> str:
    """The state of the builds in a line; the time that remains is estimated from the pace of those that ended."""
    expected_s = _expect_s(remaining)
    if built:
        expected_s *= elapsed_s / _expect_s(built)
    left = f"{max(1, round(expected_s / 60))} min"
    return f"components: {len(built)} of {len(built) + len(remaining)} built, about {left} left: {', '.join(remaining)}"


def _expect_s(names: Sequence[str]) -> float:
    return float(sum(_TAKES_S.get(name, _TAKES_BY_DEFAULT_S) for name in names))


def are_built() -> bool:
    """Whether the cache has every component of a cluster."""
    return all(component.folder.exists() for component in COMPONENTS)


def versions() -> dict[str, str]:
    """Component name to pinned version."""
    return {component.name: component.version for component in COMPONENTS if component.module}


def _ensure(component: Component, go: Path, journal: Journal) -> None:
    folder = component.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f"{component.name}.lock")
    _acquire(lock, component, journal)
    try:
        if folder.exists():
            return
        for unfinished in folder.parent.glob(f".building-{component.name}-*"):
            shutil.rmtree(unfinished)
        draft = folder.with_name(f".building-{folder.name}")
        with journal.phase(f"build {component.name} {component.version}".strip()):
            _build(component, go, draft, journal)
        draft.rename(folder)
    finally:
        lock.release()


def _acquire(lock: FileLock, component: Component, journal: Journal) -> None:
    with journal.activity(f"build {component.name}") as activity:
        while True:
            try:
                lock.acquire(timeout=1)
                return
            except Timeout:
                activity.update("waiting for another run, which builds it", announce=True)


def _build(component: Component, go: Path, draft: Path, journal: Journal) -> None:
    # In the draft, where the next run finds and removes what a killed compiler leaves.
    scratch = draft / ".scratch"
    scratch.mkdir(parents=True)
    log = draft.parent / f"{component.name}.log"
    by_package: dict[str, str] = {package: program for program, package in component.programs.items()}
    command = [str(go), "build", "-v", *_FLAGS, f"-ldflags={component.linker_flags}"]
    if len(by_package) == 1:
        command += ["-o", str(draft / next(iter(component.programs)))]
    else:
        command += ["-o", f"{draft}/"]
    _run(component, [*command, *by_package], log, _environment() | {"GOTMPDIR": str(scratch)}, journal)
    shutil.rmtree(scratch)
    if component.more_files:
        component.more_files(_module_folder(component, go), draft)


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
    return {name: value for name, value in os.environ.items() if name != "GOROOT"} | _ENVIRONMENT


def _run(component: Component, command: list[str], log: Path, environment: dict[str, str], journal: Journal) -> None:
    """Run a build, and report its progress."""
    with log.open("w", encoding="utf-8") as output, journal.activity(f"build {component.name}") as activity:
        process = subprocess.Popen(
            [*build_once.end_with_this_process(), *command],
            cwd=component.source,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                activity.update(_progress(log))
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        tail = "\n  ".join(_tail(log, _LOG_LINES))
        raise EnvironmentUnusable(
            f"build of {component.name} failed (go build exited with {process.returncode})\n  {tail}\n  log: {log}",
            hint="if a download failed, run the command again",
        )


def _progress(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"{len(lines)} packages compiled, at {lines[-1]}" if lines else "nothing compiled yet"


def _tail(log: Path, count: int) -> list[str]:
    with log.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip() for line in deque(file, count)]
