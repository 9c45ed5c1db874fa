"""The process that owns a local cluster: creates its namespaces, watches its run's process, and removes everything.

Run by `lifecycle.start` as ``python -m pytest_vllm_stage.cluster.local.supervisor STATE_DIR SLOT_DESCRIPTOR``; it runs
on in a session of its own. SIGTERM ends the cluster in order, SIGUSR1 makes it check whether the cluster should be
kept. When it is killed, the kernel kills the cluster's processes with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
from ipaddress import IPv4Network
from pathlib import Path

from pytest_vllm_stage.cluster.local import cgroups, locking, network, removal, volumes
from pytest_vllm_stage.cluster.local import record as records
from pytest_vllm_stage.cluster.local.api import CALL_FAILED, BootstrapApi, BootstrapCallRejected
from pytest_vllm_stage.cluster.local.layout import Layout
from pytest_vllm_stage.cluster.local.locking import Slot
from pytest_vllm_stage.cluster.local.network import Addresses
from pytest_vllm_stage.cluster.local.packages import SYSTEM_PATH
from pytest_vllm_stage.cluster.local.record import Record
from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageError
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import PACKAGE
from pytest_vllm_stage.core.waiting import Observation, wait_until

_PR_SET_CHILD_SUBREAPER = 36
#: Milliseconds between two checks for volumes whose claim is gone.
_LOOK_AT_VOLUMES_MS = 3000
_NAMESPACES = ("--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")


def main() -> None:
    """Detach from the caller, own the cluster until it has to end, and remove it."""
    told, tell = os.pipe()
    if os.fork():
        # The caller waits for this process only, so that the cluster's owner has no parent.
        os.close(tell)
        os._exit(0 if os.read(told, 1) else 1)
    os.setsid()
    _adopt_orphans()
    wakeup = _wakeup_socket()
    record = records.load(Path(sys.argv[1]))
    assert record is not None  # noqa: S101 written before this process was started
    record = record.changed(supervisor=locking.this_process())
    os.write(tell, b".")
    os.close(tell)
    Supervisor(record, Slot.inherited(int(sys.argv[2])), wakeup).run()


def _adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent died, so that this process sees the end of all of them."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _reap_all() -> None:
    """Wait until every child has ended; the kernel ends a namespace's first process after all others of it."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _wakeup_socket() -> socket.socket:
    """Becomes readable when a signal arrives; the handlers do nothing themselves."""
    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)
    signal.set_wakeup_fd(writer.detach())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    return reader


class Supervisor:
    """Owns one cluster.

    Args:
        record: The cluster's record; only this process writes it from now on.
        slot: Held until this process ends.
        wakeup: Delivers the numbers of signals.
    """

    def __init__(self, record: Record, slot: Slot, wakeup: socket.socket) -> None:
        self._record = record
        self._slot = slot
        self._wakeup = wakeup
        self._inner: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Create it, watch it, remove it."""
        try:
            reason = self._make() or self._watch()
        except (StageError, OSError) as error:
            reason = f"the cluster could not be created: {error}"
        print(reason, flush=True)  # noqa: T201 standard output is this process's log
        self._record = self._record.changed(phase="ending", reason=reason)
        self._end()

    def _make(self) -> str:
        """Create cgroups, namespaces and network; return the reason to end at once, or an empty string."""
        if not self._record.lifeline.alive():
            return "the process that requested the cluster has ended"
        for folder in self._record.made_dirs:
            Path(folder).mkdir(exist_ok=True)
        cgroups.create(self._record.cgroup)
        self._inner = self._start_inner()
        self._wait_for_namespace(self._inner)
        network.connect(self._record.link, Addresses(IPv4Network(self._record.block)), self._inner.pid)
        assert self._inner.stdin is not None  # noqa: S101 it is a pipe
        self._inner.stdin.write(b"connected\n")
        self._inner.stdin.flush()
        return ""

    def _start_inner(self) -> subprocess.Popen[bytes]:
        inner = [sys.executable, "-m", "pytest_vllm_stage.cluster.local.inner", self._record.state_dir]
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *_NAMESPACES, *inner]
        # Nothing else of the caller's environment: proxies and the like would reach the cluster's programs.
        environment = {
            "PATH": SYSTEM_PATH,
            "HOME": self._record.state_dir,
            "PYTHONPATH": str(PACKAGE.parent),
            removal.MARK: self._record.id,
        }
        return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, cwd="/")

    def _wait_for_namespace(self, inner: subprocess.Popen[bytes]) -> None:
        def look() -> Observation:
            if inner.poll() is not None:
                return Observation(False, "ended", f"unshare exited with {inner.returncode}")
            made = os.readlink(f"/proc/{inner.pid}/ns/net") != os.readlink("/proc/self/ns/net")
            return Observation(made, "made" if made else "not made yet")

        wait_until(
            "network namespace", look, timeout_s=20, journal=Journal(), interval_s=0.01, error=EnvironmentUnusable
        )

    def _watch(self) -> str:
        """Wait until the cluster has to end; return the reason."""
        assert self._inner is not None  # noqa: S101 made before
        poll = select.poll()
        inner = os.pidfd_open(self._inner.pid)
        lifeline = self._record.lifeline.open()
        if lifeline is None:
            return "the process that requested the cluster has ended"
        for descriptor in (inner, lifeline, self._wakeup.fileno()):
            poll.register(descriptor, select.POLLIN)
        self._record = self._record.changed(phase="up")
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(_LOOK_AT_VOLUMES_MS)}
            if not ready:
                self._reclaim_volumes()
            if inner in ready:
                return f"the cluster's first process ended with {self._inner.wait()}"
            if self._wakeup.fileno() in ready:
                numbers = set(self._wakeup.recv(64))
                if numbers - {signal.SIGUSR1}:
                    return "it was asked to end"
                self._keep_if_asked()
            if lifeline in ready:
                if not self._record.kept:
                    return "the process that requested the cluster has ended"
                poll.unregister(lifeline)

    def _keep_if_asked(self) -> None:
        if (self._record.path / records.KEEP_FILE).exists():
            self._record = self._record.changed(kept=True)

    def _reclaim_volumes(self) -> None:
        """Make released volumes available again; without an answer of the API server there are none."""
        layout = Layout.of(self._record)
        try:
            names = volumes.reclaim(BootstrapApi(layout, timeout_s=2), layout.volumes)
        except (*CALL_FAILED, BootstrapCallRejected) as error:
            print(f"volumes not checked: {error}", flush=True)  # noqa: T201 standard output is this process's log
        else:
            for name in names:
                print(f"volume {name} made available again", flush=True)  # noqa: T201 standard output is this process's log

    def _end(self) -> None:
        """Kill the namespaces' first process, which ends all others, then remove what the host has of the cluster."""
        if self._inner is not None:
            self._inner.kill()
        _reap_all()
        done = removal.remove_dead(self._slot)
        for line in done.left:
            print(f"not removed: {line}", flush=True)  # noqa: T201 standard output is this process's log


if __name__ == "__main__":
    main()
