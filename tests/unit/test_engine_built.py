"""What is built once: one builder at a time, complete or not there, whatever kills it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_vllm_stage.core import build_once
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until


def run(build: build_once.Build, code: str, timeout_s: float = 30) -> None:
    command = [sys.executable, "-c", code]
    build.run("step", command, timeout_s=timeout_s, advise=lambda tail: f"advice on {tail[-6:]}", env=dict(os.environ))


def write_file(build: build_once.Build) -> build_once.Facts:
    run(build, "open('made', 'w').write('x')")
    return {"answer": 42}


def never(_build: build_once.Build) -> build_once.Facts:
    pytest.fail("built again")


def test_it_is_built_once_and_says_the_same_later(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "abc"
    assert build_once.ensure(folder, "thing", write_file, Journal()) == {"answer": 42}
    assert (folder / "made").read_text() == "x"
    assert build_once.ensure(folder, "thing", never, Journal()) == {"answer": 42}


def test_what_an_unfinished_build_left_is_thrown_away(tmp_path: Path) -> None:
    folder = tmp_path / "abc"
    folder.mkdir()
    (folder / "half").touch()
    build_once.ensure(folder, "thing", write_file, Journal())
    assert sorted(path.name for path in folder.iterdir()) == [build_once.MARKER, "made"]


def test_a_failed_step_shows_its_output_and_the_build_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "abc"

    def fail(build: build_once.Build) -> build_once.Facts:
        run(build, "print('no can do'); raise SystemExit(3)")
        return {}

    with pytest.raises(EnvironmentUnusable, match=r"step failed with exit code 3:\nno can do") as caught:
        build_once.ensure(folder, "thing", fail, Journal())
    assert caught.value.hint == "advice on can do"
    assert build_once.ensure(folder, "thing", write_file, Journal()) == {"answer": 42}


def test_a_step_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    def hang(build: build_once.Build) -> build_once.Facts:
        # A shell, since an interpreter may take longer than the timeout to start on a busy machine.
        build.run("step", ["sh", "-c", "echo $$ > pid; exec sleep 60"], timeout_s=2, advise=str, env=dict(os.environ))
        return {}

    with pytest.raises(EnvironmentUnusable, match="step: not reached within 2 s"):
        build_once.ensure(tmp_path / "abc", "thing", hang, Journal())
    assert not Path(f"/proc/{(tmp_path / 'abc' / 'pid').read_text().strip()}").exists()


def test_an_interrupt_ends_the_step(tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        if "running" in line:
            raise KeyboardInterrupt

    def hang(build: build_once.Build) -> build_once.Facts:
        code = "import os, time; open('pid', 'w').write(str(os.getpid())); print('running', flush=True); time.sleep(60)"
        run(build, code)
        return {}

    with pytest.raises(KeyboardInterrupt):
        build_once.ensure(tmp_path / "abc", "thing", hang, Journal(say=interrupt))
    assert not Path(f"/proc/{(tmp_path / 'abc' / 'pid').read_text()}").exists()


def test_the_second_waits_for_the_first_and_uses_what_it_built(tmp_path: Path) -> None:
    folder = tmp_path / "abc"
    answers: list[build_once.Facts] = []
    waiting = threading.Event()

    def say(line: str) -> None:
        if "another process builds it" in line:
            waiting.set()

    with (tmp_path / "abc.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(
            target=lambda: answers.append(build_once.ensure(folder, "thing", never, Journal(say=say)))
        )
        second.start()
        assert waiting.wait(30)
        folder.mkdir()
        (folder / build_once.MARKER).write_text('{"by": "the first"}')
    second.join(30)
    assert answers == [{"by": "the first"}]


KILLED = """
import os, sys
from pathlib import Path
from pytest_vllm_stage.core import build_once
from pytest_vllm_stage.core.journal import Journal

def build(build):
    code = "import os, time; open('pid.new', 'w').write(str(os.getpid())); os.rename('pid.new', 'pid'); time.sleep(60)"
    build.run("step", [sys.executable, "-c", code], timeout_s=60, advise=str, env=dict(os.environ))

build_once.ensure(Path(sys.argv[1]), "thing", build, Journal())
"""


def test_the_lock_outlives_a_killed_builder_as_long_as_its_command(tmp_path: Path) -> None:
    folder, pid = tmp_path / "abc", tmp_path / "abc" / "pid"
    builder = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)])
    until("the command runs", pid.exists)
    builder.kill()
    builder.wait()
    with (tmp_path / "abc.lock").open("w") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(int(pid.read_text()), 9)
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert build_once.ensure(folder, "thing", write_file, Journal()) == {"answer": 42}


def until(what: str, holds: object) -> None:
    assert callable(holds)
    wait_until(what, lambda: Observation(bool(holds()), "not yet"), timeout_s=30, journal=Journal(), interval_s=0.05)
