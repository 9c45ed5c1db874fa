"""Creates the engine's environment and weights in a process of its own, while this one does something else.

The download of 2.9 GB takes the network, and the cluster's programs meanwhile take the processor. Nothing depends on
the process: `environment.ensure` and `weights.ensure` wait for what it builds, and build what it could not, so a
failure is reported there. ``python -m pytest_vllm_stage.engine.ahead`` is what it runs.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pytest_vllm_stage.core import build_once
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.engine import environment, weights


@contextmanager
def creating_engine() -> Iterator[None]:
    """Create the engine while the block runs; the process is ended with the block."""
    command = [*build_once.end_with_this_process(), sys.executable, "-m", __name__]
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(command, start_new_session=True, stdin=nowhere, stdout=nowhere, stderr=nowhere)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Create both."""
    journal = Journal()
    weights.ensure(journal, environment.ensure(journal))


if __name__ == "__main__":
    main()
