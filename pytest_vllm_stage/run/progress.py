"""Progress on the real stderr, past pytest's capture, so that a person sees it while a fixture works."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_vllm_stage.core.activity import Activity
from pytest_vllm_stage.run import live_line
from pytest_vllm_stage.run.live_line import LiveLine
from pytest_vllm_stage.run.relay import send_line


class Progress:
    """Prints plain lines with the elapsed time, and shows a live line on a terminal; silent with ``-q``.

    The descriptor of stderr is duplicated on first use, with capturing suspended for a moment, since what a fixture
    writes to ``sys.stderr`` would be captured. An xdist worker hands plain lines to the controller.

    Attributes:
        relay: Where a worker leaves its lines for the controller.
    """

    def __init__(self, config: pytest.Config, relay: Path) -> None:
        self._config = config
        self._silent = config.get_verbosity() < 0
        self._is_worker = hasattr(config, "workerinput")
        self.relay = relay
        self._started = time.monotonic()
        self._descriptor: int | None = None
        self._live: LiveLine | None = None

    def __call__(self, line: str) -> None:
        if self._silent:
            return
        if self._is_worker:
            with contextlib.suppress(OSError):
                send_line(self.relay, line)
            return
        self._prepare()
        self._print(line)

    def print_relayed(self, line: str) -> None:
        """Print a worker's line, from a thread of the controller, which captures nothing while tests run."""
        if not self._silent:
            self._open()
            self._print(line)

    def _print(self, line: str) -> None:
        text = f"[stage {time.monotonic() - self._started:6.1f} s] {line}\n".encode(errors="replace")
        if self._live is not None:
            self._live.print(text)
            return
        try:
            os.write(self._descriptor if self._descriptor is not None else 2, text)
        except OSError:
            self._silent = True

    def begin(self, activity: Activity, /) -> bool:
        """Show the activity on the live line; False where there is none."""
        if self._silent or self._is_worker:
            return False
        self._prepare()
        if self._live is None:
            return False
        self._live.begin(activity)
        return True

    def end(self, activity: Activity, /) -> None:
        """Remove the activity from the live line."""
        if self._live is not None:
            self._live.end(activity)

    def _prepare(self) -> None:
        """End pytest's own line, and keep the uncaptured stderr for other threads and for the live line."""
        capture = self._config.pluginmanager.getplugin("capturemanager")
        if threading.current_thread() is not threading.main_thread() or (self._live and not self._live.idle):
            return
        if capture is None:
            self._open()
            return
        with capture.global_and_fixture_disabled():
            self._open()

    def _open(self) -> None:
        self._end_terminal_line()
        if self._descriptor is None:
            self._descriptor = os.dup(2)
            if live_line.is_supported(self._descriptor):
                self._live = LiveLine(self._descriptor)

    def _end_terminal_line(self) -> None:
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        if reporter is None:
            return
        reporter.ensure_newline()
        writer = self._config.get_terminal_writer()
        if writer.width_of_current_line:  # under xdist, the reporter does not count the workers' dots as a line
            writer.line()
        sys.stdout.flush()
