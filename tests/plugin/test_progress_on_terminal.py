"""The live line of a whole pytest run on a terminal of its own."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

#: Waits in the stage's set-up, past pytest's capture, until the test has seen what it wants.
WAITING = """
from pytest_vllm_stage.core.waiting import Observation, wait_until
before = lifecycle.make_stage

def make_stage_slowly(run, cluster):
    go = Path(__file__).parent / "go"
    look = lambda: Observation(go.exists(), "Pending")
    wait_until("pod/q Ready", look, timeout_s=600, journal=run.journal, interval_s=0.05)
    return before(run, cluster)

lifecycle.make_stage = make_stage_slowly
"""
SUITE = """
def test_stage(stage):
    assert stage.namespace == "small"
"""
#: Tests whose dots stand in the line when progress is printed.
DOTS = """
import pytest
@pytest.mark.parametrize("n", range(6))
def test_quick(n):
    pass
"""
LIVE = " left  waiting for pod/q Ready: Pending"
PLAIN = "s] waiting for pod/q Ready: Pending (0 s of 600 s)\r\n"
ERASE = "\x1b[J"


class Screen:
    """What a run writes to its terminal."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._descriptor = descriptor
        self.text = ""

    def read_until(self, text: str) -> None:
        """Read until the text was shown."""
        while text not in self.text:
            assert self._read(), f"{text!r} was not shown: {self.text}"

    def read_to_end(self) -> int:
        """Read until the run ends, within two minutes, although a live line may go on; return its exit status."""
        until = time.monotonic() + 120
        while self._read():
            assert time.monotonic() < until, f"the run does not end: {self.text[-2000:]}"
        return self.process.wait(60)

    def _read(self) -> bool:
        assert select.select([self._descriptor], [], [], 60)[0], f"nothing more was shown: {self.text}"
        try:
            data = os.read(self._descriptor, 65536)
        except OSError:  # on Linux, a terminal that no process has open any more
            return False
        self.text += data.decode(errors="replace")
        return bool(data)


def obey_ctrl_c() -> None:
    """A shell that starts these tests in the background has them ignore Ctrl-C, and Python leaves that as it is."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def run_on_terminal(place: pytest.Pytester, *options: str, columns: int = 100, term: str = "xterm") -> Iterator[Screen]:
    conftest = place.path / "conftest.py"
    conftest.write_text(conftest.read_text() + WAITING)
    place.makepyfile(SUITE)
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    # xdist sets the width of its own terminal for its workers.
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=place.path,
        env=environ | {"TERM": term},
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=obey_ctrl_c,
    )
    os.close(terminal)
    try:
        yield Screen(screen, process)
    finally:
        process.kill()
        process.wait()
        os.close(screen)


@pytest.mark.parametrize("options", [[], ["-s"], ["-v"], ["--capture=sys"]], ids=["fd", "none", "verbose", "sys"])
def test_a_wait_is_one_live_line_that_ends_with_it(place: pytest.Pytester, options: list[str]) -> None:
    with run_on_terminal(place, *options) as screen:
        screen.read_until(LIVE)
        (place.path / "go").touch()
        assert screen.read_to_end() == pytest.ExitCode.OK
    assert PLAIN not in screen.text
    after = screen.text.rpartition(LIVE)[2]
    assert after.startswith(f"\r{ERASE}"), after
    assert "1 passed" in after


def test_ctrl_c_removes_the_live_line(place: pytest.Pytester) -> None:
    with run_on_terminal(place) as screen:
        screen.read_until(LIVE)
        screen.process.send_signal(signal.SIGINT)
        assert screen.read_to_end() == pytest.ExitCode.INTERRUPTED
    after = screen.text.rpartition(LIVE)[2]
    assert after.startswith(f"\r{ERASE}"), after


def test_a_narrow_terminal_has_a_short_line(place: pytest.Pytester) -> None:
    with run_on_terminal(place, columns=30) as screen:
        screen.read_until("left  w...")
    line = screen.text.rpartition("\n")[2].removeprefix(f"\r{ERASE}")
    assert len(line.split(ERASE)[-1]) <= 29


@pytest.mark.parametrize(("options", "term"), [(["-n2"], "xterm"), ([], "dumb")], ids=["workers", "dumb"])
def test_workers_and_dumb_terminals_have_plain_lines(place: pytest.Pytester, options: list[str], term: str) -> None:
    (place.path / "test_a.py").write_text(DOTS)
    with run_on_terminal(place, *options, term=term) as screen:
        screen.read_until("waiting for pod/q Ready: Pending (")
        (place.path / "go").touch()
        assert screen.read_to_end() == pytest.ExitCode.OK
    assert ERASE not in screen.text
    assert "step: cluster ..." in screen.text
    lines = [line for line in screen.text.splitlines() if "[stage " in line]
    assert all(line.startswith("[stage ") for line in lines), lines
    assert not list(place.path.rglob("progress")), "the workers' lines were left behind"


def test_quiet_runs_show_no_progress(place: pytest.Pytester) -> None:
    (place.path / "go").touch()
    with run_on_terminal(place, "-q") as screen:
        assert screen.read_to_end() == pytest.ExitCode.OK
    assert ERASE not in screen.text
    assert "step: cluster" not in screen.text


def test_the_header_is_wrapped_between_words(place: pytest.Pytester) -> None:
    (place.path / "go").touch()
    with run_on_terminal(place, "--stage-run-dir=a-folder", columns=50) as screen:
        assert screen.read_to_end() == pytest.ExitCode.OK
    lines = screen.text.partition("vllm-stage: profile")[2].splitlines()
    # Other plugins' lines follow; hypothesis prints a long one in CI.
    header = [lines[0], *itertools.takewhile(lambda line: line.startswith("    "), lines[1:])]
    assert len(header) > 1
    assert "(--stage-run-dir)" in "".join(header)
    assert any("a-folder" in line for line in header)
    # A path is one word, and is never broken.
    assert [line for line in header if len(line) > 50 and " " in line.strip()] == []
