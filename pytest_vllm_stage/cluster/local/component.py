"""A component of the cluster: programs of one Go module, pinned by ``go.sum``, and where they are built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pytest_vllm_stage.core.paths import PACKAGE, cache_dir

MODULES = PACKAGE / "cluster" / "modules"
#: Neither inlining nor debug information, which the linker would drop anyway: compiling takes a third less time. The
#: tag leaves the xDS client and Envoy's API out of Google's storage client, a library of MinIO and KServe.
FLAGS = ("-mod=readonly", "-trimpath", "-buildvcs=false", "-tags=disable_grpc_modules", "-gcflags=all=-l -dwarf=false")
#: Static programs: they run in an empty image, and no C compiler is needed.
ENVIRONMENT = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}


@dataclass(frozen=True)
class Component:
    """Programs that have one version.

    Attributes:
        name: Its name in messages, and the start of its folder's name.
        module: The module that gives its version; empty for our own code.
        programs: Program name to the package that is built for it.
        variables: What the linker sets; ``{version}`` stands for the version.
        more_files: Copies further files of the module's folder next to the programs.
        files_format: Another value rebuilds these files.
        shares: The folder of its ``go.mod``, where it is not its own. The components of one folder are built by one
            command, and libraries that several of them use are compiled once.
    """

    name: str
    module: str
    programs: dict[str, str]
    variables: tuple[str, ...] = ()
    more_files: Callable[[Path, Path], None] | None = None
    files_format: str = ""
    shares: str = ""

    @property
    def group(self) -> str:
        """The folder of its ``go.mod``."""
        return self.shares or self.name

    @property
    def source(self) -> Path:
        """The folder with ``go.mod``."""
        return MODULES / self.group

    @property
    def version(self) -> str:
        """The pinned version; empty for our own code."""
        if not self.module:
            return ""
        lines = (self.source / "go.mod").read_text(encoding="utf-8").splitlines()
        return next(line.split()[1] for line in lines if line.strip().startswith(f"{self.module} v"))

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}".strip()

    @property
    def linker_flags(self) -> str:
        """No debug symbols, and the version where the program reports one."""
        settings = [f"-X {variable.format(version=self.version)}" for variable in self.variables]
        return " ".join(["-s -w", *settings])

    @property
    def fingerprint(self) -> str:
        """Changes when the built programs would."""
        digest = hashlib.sha256(json.dumps([self.programs, self.linker_flags, FLAGS, ENVIRONMENT]).encode())
        for path in sorted(self.source.rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
        digest.update(self.files_format.encode())
        return digest.hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """The folder of the built programs."""
        return cache_dir() / "components" / f"{self.name}-{self.fingerprint}"
