"""The first process of the cluster's namespaces: mounts, starts the programs, reaps, and reports each one's state.

It runs as ``python -m pytest_vllm_stage.cluster.local.inner STATE_DIR`` with process id 1, so its end is the end of
every process, mount and link of the cluster. It imports nothing that is slow to load.
"""

from __future__ import annotations

import os
import select
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from pytest_vllm_stage.cluster.local import status
from pytest_vllm_stage.cluster.local.programs import Mount, Plan, Program

_TICK_S = 0.05
#: With every program ready, only the end of one remains to be noticed.
_IDLE_TICK_S = 0.5
#: A program that ends is restarted this many times before it counts as failed.
_MAX_STARTS = 4
#: Seconds between the end of a program and its next start, times the number of ends.
_RESTART_PAUSE_S = 0.5

#: What the kubelet would set for the whole machine; it reads these files instead and sets nothing.
_KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def main() -> None:
    """Mount, wait for the network, then run the programs until killed or until the supervisor's pipe closes."""
    state_dir = Path(sys.argv[1])
    plan = Plan.from_json((state_dir / "plan.json").read_text(encoding="utf-8"))
    mount_all(plan.mounts, state_dir)
    if sys.stdin.readline().strip() != "connected":
        sys.exit("the supervisor ended before the network was there")
    configure_network(plan.node, plan.services)
    # The orphans that process 1 inherits end here too; a SIGTERM ends everything.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Runner(plan).run()


def mount_all(mounts: tuple[Mount, ...], state_dir: Path) -> None:
    """Set up the mounts: folders of the host that pods see, and shadows over those that must stay untouched."""
    for mount in mounts:
        _run("mount", "--rbind", mount.source, mount.target)
        if mount.read_only:
            _run("mount", "--options", "remount,bind,ro", mount.target)
    settings = state_dir / "sysctl"
    settings.mkdir()
    for name, value in _KERNEL_SETTINGS.items():
        file = settings / name.replace("/", ".")
        file.write_text(f"{value}\n", encoding="utf-8")
        if Path("/proc/sys", name).exists():
            _run("mount", "--bind", str(file), f"/proc/sys/{name}")
    _run("mount", "--types", "tmpfs", "--options", "mode=755", "tmpfs", "/run")
    # containerd and the kubelet hand mounts on to pods; nothing of it reaches the host, whose mounts are private here.
    _run("mount", "--make-rshared", "/")


def configure_network(node: str, services: str) -> None:
    """Address the node's end of the veth pair and let the namespace forward packets.

    There is no default route: nothing in the cluster can reach any machine but the host.
    """
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "address", "add", node, "dev", "eth0")
    _run("ip", "link", "set", "eth0", "up")
    # kube-proxy turns a Service's address into a pod's only in a packet that has a route: without one the API server
    # reaches no webhook that is a Service.
    _run("ip", "route", "add", services, "dev", "eth0")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="utf-8")


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(command)}: {result.stderr.strip()}")


class Runner:
    """Starts each program when what it waits for is ready, and starts it again when it ends."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._states = {program.name: status.ProgramState() for program in plan.programs}
        self._start_at = dict.fromkeys(self._states, 0.0)
        self._pids: dict[int, Program] = {}
        self._tls = ssl.create_default_context(cafile=plan.ca_file)
        self._reported = ""

    def run(self) -> None:
        """Run until this process is killed."""
        while True:
            self._reap()
            for program in self._plan.programs:
                self._advance(program)
            self._report_states()
            idle = all(state.ready_at or state.failed for state in self._states.values())
            # The supervisor holds the other end for as long as it lives, and sends nothing more.
            if select.select([0], [], [], _IDLE_TICK_S if idle else _TICK_S)[0] and not os.read(0, 1):
                return

    def _advance(self, program: Program) -> None:
        state = self._states[program.name]
        if state.running:
            if state.ready_at is None and not program.once and self._probe(program):
                state.ready_at = time.time()
            return
        if state.failed or (program.once and state.ready_at) or time.monotonic() < self._start_at[program.name]:
            return
        if all(self._is_ready(name) for name in program.after):
            self._start(program)

    def _is_ready(self, name: str) -> bool:
        if name.startswith("file:"):
            return Path(name.removeprefix("file:")).exists()
        return self._states[name].ready_at is not None

    def _start(self, program: Program) -> None:
        log = os.open(Path(self._plan.logs, f"{program.name}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = subprocess.Popen(
                program.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **dict(program.env)},
                start_new_session=True,
            )
        finally:
            os.close(log)
        state = self._states[program.name]
        state.running, state.starts, state.started_at = True, state.starts + 1, time.time()
        self._pids[process.pid] = program
        # Reaped by this process's own loop together with the orphans.
        process.returncode = 0

    def _probe(self, program: Program) -> bool:
        if not program.probe:
            return True
        if program.probe.startswith("/"):
            return Path(program.probe).exists()
        context = self._tls if program.probe.startswith("https:") else None
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), *([urllib.request.HTTPSHandler(context=context)] if context else [])
        )
        try:
            with opener.open(program.probe, timeout=1):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _reap(self) -> None:
        while True:
            try:
                pid, code = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if program := self._pids.pop(pid, None):
                self._ended(program, os.waitstatus_to_exitcode(code))

    def _ended(self, program: Program, code: int) -> None:
        state = self._states[program.name]
        state.running, state.last_exit = False, code
        if program.once and code == 0:
            state.ready_at = time.time()
            return
        state.ready_at = None
        state.failed = state.starts >= _MAX_STARTS
        self._start_at[program.name] = time.monotonic() + _RESTART_PAUSE_S * state.starts

    def _report_states(self) -> None:
        text = status.to_json(self._states)
        if text != self._reported:
            status.write(Path(self._plan.state), text)
            self._reported = text


if __name__ == "__main__":
    main()
