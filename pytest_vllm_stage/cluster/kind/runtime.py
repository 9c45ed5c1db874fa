"""The container runtime that kind's node runs in, and the programs that drive both."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_vllm_stage.cluster.local import components
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal

#: kind reads it too: https://kind.sigs.k8s.io/docs/user/rootless/
PROVIDER_VARIABLE = "KIND_EXPERIMENTAL_PROVIDER"
PROVIDERS = ("docker", "podman")
#: Prefix of the images that a run loads into the node: no registry has them.
LOADED = "vllm-stage.local/"
#: kind's container in front of several control planes runs no pods.
_LOAD_BALANCER = "-external-load-balancer"
#: Where kind runs another program, that program's error follows kind's own.
_STATES_ERROR = re.compile(r"(Command Output: |docker: |podman: )?(error|cannot|failed)", re.IGNORECASE)
_ANSWER_S = 30.0
_CREATE_S = 600.0
_PULL_S = 1800.0
#: The longest wait for a container that is being started.
_STARTED_S = 60.0
_LOCAL = "or run without containers: --stage-cluster=local"
_START = {"docker": "start it: systemctl start docker", "podman": "try it by hand: podman info"}
_VERSION = {"docker": ("version", "--format", "{{.Server.Version}}"), "podman": ("version", "--format", "{{.Version}}")}


@dataclass(frozen=True)
class ContainerRuntime:
    """Docker or Podman, with the kind that uses it.

    Attributes:
        provider: ``docker`` or ``podman``.
        program: Its path.
        kind: The path of kind.
    """

    provider: str
    program: str
    kind: str

    def run_kind(self, *arguments: str, timeout_s: float = _CREATE_S) -> subprocess.CompletedProcess[str]:
        """Run kind on this runtime."""
        environment = {**os.environ, PROVIDER_VARIABLE: self.provider}
        return _run([self.kind, *arguments], timeout_s, environment)

    def find_nodes(self, cluster: str) -> list[str]:
        """The containers of a cluster in which pods run."""
        done = self.run_kind("get", "nodes", "--name", cluster, timeout_s=_ANSWER_S)
        return [name for name in done.stdout.split() if not name.endswith(_LOAD_BALANCER)]

    def find_images(self, node: str) -> set[str]:
        """The names of the images in a node."""
        done = _run([self.program, "exec", node, "ctr", "--namespace=k8s.io", "images", "list", "--quiet"], _ANSWER_S)
        return set(done.stdout.split())

    def pull(self, node: str, image: str) -> None:
        """Pull an image in a node, before a pod needs it.

        Raises:
            EnvironmentUnusable: it cannot be pulled.
        """
        done = _run([self.program, "exec", node, "crictl", "pull", image], _PULL_S)
        if done.returncode:
            raise EnvironmentUnusable(
                f"image {image} cannot be pulled in kind's node: {last_line(done)}",
                hint=f"{self.provider} pull {image}; a proxy or mirror: https://kind.sigs.k8s.io/docs/user/quick-start/",
            )


def find_runtime(journal: Journal, environment: Mapping[str, str] = os.environ) -> ContainerRuntime:
    """The container runtime that answers, and kind: from the PATH, else built from its pinned module.

    Raises:
        ConfigError: the variable that chooses the runtime has another value than docker or podman.
        EnvironmentUnusable: there is no runtime, its daemon does not answer, or kind can be neither found nor built.
    """
    provider, program = _find_provider(environment.get(PROVIDER_VARIABLE, ""))
    done = _run([program, *_VERSION[provider]], _ANSWER_S)
    if done.returncode or not done.stdout.strip():
        raise EnvironmentUnusable(
            f"--stage-cluster=kind: {program} is installed and does not answer: {last_line(done)}",
            hint=f"{_START[provider]}; {_LOCAL}",
        )
    journal.event("versions", provider, **{provider: done.stdout.strip()})
    return ContainerRuntime(provider, program, find_kind(journal))


def _find_provider(chosen: str) -> tuple[str, str]:
    if chosen not in ("", *PROVIDERS):
        raise ConfigError(f"{PROVIDER_VARIABLE}: unknown value {chosen!r}; valid: {', '.join(PROVIDERS)}")
    for provider in (chosen,) if chosen else PROVIDERS:
        program = shutil.which(provider)
        if program:
            return provider, program
    missing = (
        f"{chosen} ({PROVIDER_VARIABLE}) is not on the PATH" if chosen else "neither docker nor podman is on the PATH"
    )
    raise EnvironmentUnusable(
        f"--stage-cluster=kind: {missing}",
        hint=f"install one, for example: apt-get install {chosen or 'docker'}.io; {_LOCAL}".replace(
            "podman.io", "podman"
        ),
    )


def find_kind(journal: Journal) -> str:
    """The path of kind: from the PATH, else built from its pinned module."""
    found = shutil.which("kind")
    if found:
        return found
    try:
        return str(components.ensure(journal, ["kind"])["kind"])
    except EnvironmentUnusable as error:
        raise EnvironmentUnusable(
            f"--stage-cluster=kind: kind is not on the PATH and cannot be built: {error.message}",
            hint="install it: go install sigs.k8s.io/kind@latest, with $(go env GOPATH)/bin on the PATH",
        ) from None


def _run(
    command: Sequence[str | Path], timeout_s: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command; one that does not end in time counts as failed.

    It has a session of its own, and ends with this process: a Ctrl-C reaches this process alone, which then awaits what
    the command has started. The daemon finishes a container whose ``docker run`` was ended: nothing would remove it.
    """
    until_death = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    line = [*until_death, *(str(part) for part in command)]
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen(line, text=True, env=environment, start_new_session=True, **streams)
    except OSError as error:
        return subprocess.CompletedProcess(line, 1, "", str(error))
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _end(process)
        return subprocess.CompletedProcess(line, 1, "", f"no end within {timeout_s:g} s")
    except BaseException:
        _end(process)
        raise
    return subprocess.CompletedProcess(line, process.returncode, output, errors)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a command, and wait for what it has started."""
    process.kill()
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream:
            stream.close()
    deadline = time.monotonic() + _STARTED_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The line of a failed command's output that states the error."""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if _STATES_ERROR.match(line)]
    return (errors or lines or [f"exit code {done.returncode}, no output"])[-1][:500]
