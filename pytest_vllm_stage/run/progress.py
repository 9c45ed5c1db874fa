"""Progress lines on the real stderr, past pytest's capture, so that a person sees them while a fixture works."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest


class Progress:
    """Says one plain line with the elapsed time; silent with ``-q``.

    The descriptor is duplicated when the plugin is configured and capturing is suspended for a moment, since what a
    fixture writes to ``sys.stderr`` would be captured, and a worker's stdout is xdist's own channel.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._silent = config.get_verbosity() < 0
        self._started = time.monotonic()
        self._descriptor: int | None = None

    def __call__(self, line: str) -> None:
        """Write the line now."""
        if self._silent:
            return
        text = f"[stage {time.monotonic() - self._started:6.1f} s] {line}\n".encode(errors="replace")
        capture = self._config.pluginmanager.getplugin("capturemanager")
        if capture is None or threading.current_thread() is not threading.main_thread():
            self._write(text)
            return
        with capture.global_and_fixture_disabled():
            self._end_terminal_line()
            self._keep_descriptor()
            self._write(text)

    def _write(self, text: bytes) -> None:
        try:
            os.write(self._descriptor if self._descriptor is not None else 2, text)
        except OSError:
            self._silent = True

    def _keep_descriptor(self) -> None:
        """Keep the uncaptured stderr for lines that other threads say while capture is on."""
        if self._descriptor is None:
            self._descriptor = os.dup(2)

    def _end_terminal_line(self) -> None:
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None and not hasattr(self._config, "workerinput"):
            reporter.ensure_newline()
            sys.stdout.flush()
