"""The live line: what it shows, that it fits the terminal, and that it leaves no trace."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from pytest_vllm_stage.core.activity import Activity, NoLiveLine
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.run import live_line
from pytest_vllm_stage.run.live_line import LiveLine, render

ERASE = "\x1b[J"


class Stopped(Activity):
    """An activity at a fixed time."""

    fixed_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """The fixed time."""
        return self.fixed_s


def activity(
    what: str = "load full-rate-5", *, elapsed_s: float = 15, total_s: float | None = 60, limit: bool = False
) -> Activity:
    made = Stopped(what, say=print, live=NoLiveLine(), total_s=total_s, limit=limit)
    made.state = "75 of 300 sent"
    made.fixed_s = elapsed_s
    return made


class Terminal(NamedTuple):
    """A terminal of which the test is the screen."""

    screen: int
    descriptor: int

    def resize(self, columns: int) -> None:
        """Set the number of columns."""
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def read_until(self, text: str) -> str:
        """Everything shown so far, once it contains the text."""
        seen = ""
        while text not in seen:
            assert select.select([self.screen], [], [], 30)[0], f"{text!r} was not shown: {seen!r}"
            seen += os.read(self.screen, 65536).decode()
        return seen


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal(*pty.openpty())
    made.resize(100)
    yield made
    os.close(made.screen)
    os.close(made.descriptor)


class Shown:
    """A live line as a journal uses it."""

    def __init__(self, line: LiveLine) -> None:
        self.line = line

    def begin(self, activity: Activity, /) -> bool:
        """Show the activity."""
        self.line.begin(activity)
        return True

    def end(self, activity: Activity, /) -> None:
        """Remove the activity."""
        self.line.end(activity)


def test_bar_elapsed_and_remaining_time_come_before_the_state() -> None:
    assert render(activity(), 100) == "[#####---------------] 0:15, 0:45 left  load full-rate-5: 75 of 300 sent"


def test_time_until_a_timeout_is_named_as_a_limit() -> None:
    line = render(activity("waiting for pod/x Ready", elapsed_s=75, total_s=4000, limit=True), 120)
    assert line.endswith("1:15, at most 1:05:25 left  waiting for pod/x Ready: 75 of 300 sent")


def test_without_a_known_duration_there_is_no_bar() -> None:
    assert render(activity(total_s=None), 100) == "0:15  load full-rate-5: 75 of 300 sent"


def test_work_past_its_expected_end_shows_a_full_bar() -> None:
    assert render(activity(elapsed_s=90), 100).startswith("[####################] 1:30, 0:00 left  ")


@pytest.mark.parametrize("width", [1, 2, 10, 40, 49, 50, 79, 80, 200])
def test_the_line_never_exceeds_the_terminal(width: int) -> None:
    long = activity("waiting for " + "inferenceservice/" * 10)
    assert len(render(long, width)) == min(width, len(render(long, 1000)))


def test_control_characters_of_a_state_do_not_reach_the_terminal() -> None:
    made = activity()
    made.state = "\x1b[31mred\x1b[0m\r\n\tdownload\x07"
    assert render(made, 200).endswith("load full-rate-5: red   download ")


def test_the_line_is_redrawn_while_the_work_blocks_and_removed_at_its_end(terminal: Terminal) -> None:
    journal = Journal(live=Shown(LiveLine(terminal.descriptor)))
    with journal.phase("step: cluster"):
        terminal.read_until("0:00  step: cluster")
        terminal.read_until("0:01  step: cluster")
    assert terminal.read_until(ERASE).endswith(f"\r{ERASE}")


def test_an_interrupt_removes_the_line(terminal: Terminal) -> None:
    journal = Journal(live=Shown(LiveLine(terminal.descriptor)))

    def work() -> None:
        with journal.phase("step: cluster"):
            terminal.read_until("step: cluster")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert terminal.read_until(ERASE).endswith(f"\r{ERASE}")


def test_the_innermost_work_is_shown_and_the_outer_one_comes_back(terminal: Terminal) -> None:
    journal = Journal(live=Shown(LiveLine(terminal.descriptor)))
    with journal.phase("outer"):
        terminal.read_until("outer")
        with journal.activity("inner", total_s=10) as inner:
            inner.update("half")
            terminal.read_until("inner: half")
        assert "inner" not in terminal.read_until("outer").split(ERASE)[-1]


def test_a_printed_line_does_not_mix_with_the_live_line(terminal: Terminal) -> None:
    line = LiveLine(terminal.descriptor)
    with Journal(live=Shown(line)).phase("step: cluster"):
        terminal.read_until("step: cluster")
        line.print(b"removed leftovers\n")
        assert f"\r{ERASE}removed leftovers\r\n" in terminal.read_until("leftovers\r\n")
        terminal.read_until("step: cluster")


def test_a_terminal_that_became_narrower_is_cleared_of_every_row(terminal: Terminal) -> None:
    with Journal(live=Shown(LiveLine(terminal.descriptor))).phase("waiting " * 10):
        terminal.read_until("waiting waiting")
        terminal.resize(30)
        # The line of 80 and some characters was wrapped to three rows.
        assert f"\r\x1b[2A{ERASE}" in terminal.read_until("...")


def test_only_a_terminal_that_can_erase_has_a_live_line(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert live_line.is_supported(terminal.descriptor)
    reading, writing = os.pipe()
    assert not live_line.is_supported(writing)
    for descriptor in (reading, writing):
        os.close(descriptor)
    for name in ("dumb", ""):
        monkeypatch.setenv("TERM", name)
        assert not live_line.is_supported(terminal.descriptor)


def test_without_a_terminal_new_states_and_the_time_are_printed() -> None:
    said: list[str] = []
    with Journal(say=said.append).activity("build etcd", total_s=90, interval_s=3600) as work:
        for state in ("10 packages", "10 packages", "20 packages"):
            work.update(state, announce=True)
        work.update("30 packages")
    assert [line.split(" (")[0] for line in said] == ["build etcd: 10 packages", "build etcd: 20 packages"]
    assert said[0].endswith(" s of 90 s)")


def test_without_a_terminal_the_state_is_printed_again_after_the_interval() -> None:
    said: list[str] = []
    with Journal(say=said.append).activity("build etcd", interval_s=0) as work:
        work.update("10 packages")
        work.update("10 packages")
    assert [line.split(" (")[0] for line in said] == ["build etcd: 10 packages"] * 2


def test_a_short_phase_leaves_no_line_on_a_terminal_unless_it_fails(terminal: Terminal) -> None:
    said: list[str] = []
    journal = Journal(say=said.append, live=Shown(LiveLine(terminal.descriptor)))
    with journal.phase("prompts full-rate-5"):
        pass
    with pytest.raises(ValueError, match="bad"), journal.phase("prompts full-rate-10"):
        raise ValueError("bad")
    assert [line.split(" in ")[0] for line in said] == ["prompts full-rate-10: ValueError"]
