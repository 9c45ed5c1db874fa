"""The driver's own process: nothing else runs in its interpreter, and it may run before others on its machine.

It reads a pickled job from its stdin, then lines (``stop REASON``) until the parent closes it, which ends the process.
On its stdout it writes frames, each a length of four bytes and a pickle: ``("progress", LoadProgress)``,
``("sample", Sample)`` where the parent watches, and last ``("done", Measurement)`` or ``("error", StageError)``.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pickle
import signal
import struct
import sys
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, BinaryIO

from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.load.driver import LoadJob, run_step
from pytest_vllm_stage.load.priority import raise_priority
from pytest_vllm_stage.load.progress import LoadProgress
from pytest_vllm_stage.measurement.samples import Measurement, Sample

LENGTH = struct.Struct("!I")


def frame(message: tuple[str, Any]) -> bytes:
    """A message as it goes through the pipe."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(data)) + data


def read_frame(pipe: BinaryIO) -> Any:
    """The next message; None at the pipe's end. Both ends are this package, so that unpickling is safe."""
    head = pipe.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    data = pipe.read(length)
    return pickle.loads(data) if len(data) == length else None  # noqa: S301


class _Parent:
    """The other end of the pipes."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._out: asyncio.WriteTransport | None = None
        self._stop: str | None = None
        self._partial = b""

    async def attach(self) -> None:
        """Write without ever waiting for the parent, and listen to it."""
        self._out, _ = await self._loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout.buffer)
        os.set_blocking(0, False)
        self._loop.add_reader(0, self._readable)

    def report(self, progress: LoadProgress) -> None:
        """Hand on the step's progress."""
        self.send("progress", progress)

    def send(self, kind: str, content: Any) -> None:
        if self._out is not None:
            self._out.write(frame((kind, content)))

    def watch(self, sample: Sample) -> str | None:
        """Hand on a sample; the reason to stop, once the parent has given one."""
        self.send("sample", sample)
        return self._stop

    def _readable(self) -> None:
        try:
            data = os.read(0, 4096)
        except BlockingIOError:
            return
        if not data:
            os._exit(1)  # the parent is gone, and with it everyone who would want the result
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._stop = line.decode().removeprefix("stop ")


async def _work(job: LoadJob, watched: bool) -> None:
    parent = _Parent()
    await parent.attach()
    priority = raise_priority()
    try:
        measurement = await run_step(job, watcher=parent.watch if watched else None, report=parent.report)
    except StageError as error:
        parent.send("error", error)
    else:
        parent.send("done", _with_priority(measurement, priority))
    await _flushed(parent)


def _with_priority(measurement: Measurement, priority: str) -> Measurement:
    return replace(measurement, client=replace(measurement.client, priority=priority))


async def _flushed(parent: _Parent) -> None:
    while parent._out is not None and parent._out.get_write_buffer_size():
        await asyncio.sleep(0.01)


def run_loop(work: Coroutine[Any, Any, None]) -> None:
    """Run in uvloop where it is installed, else in asyncio's own loop."""
    if importlib.util.find_spec("uvloop") is None:
        asyncio.run(work)
    else:
        importlib.import_module("uvloop").run(work)


def main() -> int:
    """Carry out the job that stdin holds."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    message = read_frame(sys.stdin.buffer)
    if message is None:
        return 1
    job, plain, watched = message
    api_key, gpu_metrics_token = (Secret(text) if text else None for text in plain)
    run_loop(_work(replace(job, api_key=api_key, gpu_metrics_token=gpu_metrics_token), watched))
    return 0


if __name__ == "__main__":
    sys.exit(main())
