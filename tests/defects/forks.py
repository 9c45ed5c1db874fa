"""Runs pytest in processes forked from one that has imported everything, which is half of what a short run costs.

``python -m tests.defects.forks [MODULE ...]`` imports these modules too, reads one JSON object per line, with
``arguments``, ``folder``, ``environment``, ``output`` and ``errors``, and answers each with its exit status on a line,
one after the other.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import inspect
import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

#: What a run of suites/inference imports and what does not look at its environment; the plugin before pytest would
#: rewrite its assertions, which none of its messages needs.
IMPORTED = (
    "pytest", "httpx", "httpcore", "h11", "certifi", "filelock", "hypothesis", "hypothesis.stateful",
    "hypothesis.strategies._internal.featureflags", "pydantic", "allure_pytest.plugin", "execnet.multi", "xdist.plugin",
    "xdist.looponfail", "xdist.newhooks", "anyio._backends._asyncio", "multiprocessing.pool", "pydoc", "yaml",
    "pytest_vllm_stage.benchmark.steps", "pytest_vllm_stage.benchmark.undecidable",
    "pytest_vllm_stage.checks.inference.relations.ahead", "pytest_vllm_stage.report.terminal",
    "pytest_vllm_stage.run.shared", "pytest_vllm_stage.settings.resolver", "pytest_vllm_stage.stage.reach.forwards",
)  # fmt: skip
#: Of these all modules: the plugin and the suite's files import one or more each.
IMPORTED_WHOLE = ("pytest_vllm_stage.checks.inference", "pytest_vllm_stage.session")
ROOT = Path(__file__).parents[2]


class Forks:
    """A process that forks; used by one thread.

    Attributes:
        modules: What it imports in addition.
    """

    def __init__(self, *modules: str) -> None:
        self.modules = modules
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.defects.forks", *modules],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def run(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        output: Path,
        timeout_s: float = 600.0,
        *,
        errors: Path | None = None,
    ) -> int:
        """Run pytest; its exit status. What it prints is in the output file, that of stderr in ``errors`` if given."""
        job = {"arguments": arguments, "folder": str(folder), "environment": environment}
        job |= {"output": str(output), "errors": str(errors or output)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watch = threading.Timer(timeout_s, self._kill)
        watch.start()
        try:
            print(json.dumps(job, default=dict), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        finally:
            watch.cancel()
        assert answer, f"pytest {' '.join(arguments)} did not end within {timeout_s:.0f} s; it printed {output}"
        return int(answer)

    def _kill(self) -> None:
        """End it and what it has forked."""
        os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End it; it forks nothing at this time."""
        self._process.communicate()


_of_thread = threading.local()


def forks(*modules: str) -> Forks:
    """This thread's for these modules; it ends with the process that asked."""
    found: Forks | None = getattr(_of_thread, "forks", None)
    if found is None or not found.alive or found.modules != modules:
        found = _of_thread.forks = Forks(*modules)
        atexit.register(found.close)
    return found


def _run(job: Mapping[str, Any]) -> int:
    """Run pytest in this process, which is forked for it."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # Both append to what is empty: they may be the same file.
    for descriptor, path in ((1, job["output"]), (2, job["errors"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600), descriptor)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.path[:0] = [path for path in job["environment"].get("PYTHONPATH", "").split(os.pathsep) if path]
    # Its workers get the path that xdist found when it was imported.
    sys.modules["xdist.plugin"]._sys_path[:] = sys.path
    sys.argv = ["pytest", *job["arguments"]]
    import pytest

    return int(pytest.main(["-W", "ignore::pytest.PytestAssertRewriteWarning", *job["arguments"]]))


def _find_modules(packages: Sequence[str]) -> Iterator[str]:
    for name in packages:
        for module in pkgutil.iter_modules(importlib.import_module(name).__path__):
            yield f"{name}.{module.name}"


def main() -> None:
    """Fork for each line."""
    for name in (*IMPORTED, *sys.argv[1:], *_find_modules(IMPORTED_WHOLE)):
        importlib.import_module(name)
    inspect.getmodule(main.__code__)  # maps files to modules, which each child with a traceback would do again
    gc.freeze()  # no child scans, and so copies, what all of them share
    while line := sys.stdin.readline():
        child = os.fork()
        if not child:
            status = 70
            try:
                status = _run(json.loads(line))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(ended)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
