"""Runs the inference suite, unchanged, against a simulated engine with a fault, or against any server."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.defects.forks import ROOT, forks

SUITE = ROOT / "suites" / "inference"
PROFILE = Path(__file__).parent / "sim.toml"
MODEL = "sim-model"
#: The key that the simulated engine requires; not a secret.
KEY = "sim-key"
#: What the plugin prints before the message of a failure that has no source to show.
STAGE_FAILED = "stage failed: "
#: The fastest pace that still leaves time between two tokens.
PACE = ("--max-model-len", "2048", "--ttft-ms", "2", "--itl-ms", "2")


@dataclass(frozen=True)
class Outcome:
    """One run of the suite.

    Attributes:
        failed: Name of each check that failed to the first line of its message.
        passed: How many passed.
        skipped: How many were skipped.
        output: All that pytest printed.
    """

    failed: Mapping[str, str]
    passed: int
    skipped: int
    output: str

    @property
    def messages(self) -> list[str]:
        """The lines of the failures' messages, without the source that pytest shows."""
        return [line for _, lines in _read_messages(self.output) for line in lines]


@contextmanager
def simulator(*faults: Any, arguments: Sequence[str] = ()) -> Iterator[str]:
    """Run a new simulated engine with these faults, and with further arguments; yields its URL."""
    command = [sys.executable, "-m", "pytest_vllm_stage.standins.engine", "--model", MODEL, *PACE, *arguments]
    environ = os.environ | {"VLLM_API_KEY": KEY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            script(url, faults)
            yield url
        finally:
            process.terminate()


def script(url: str, faults: Sequence[Any]) -> None:
    """Replace a simulator's faults."""
    request = urllib.request.Request(  # noqa: S310 - the simulator's own URL
        f"{url}/sim/faults", json.dumps(faults).encode(), {"content-type": "application/json"}, method="PUT"
    )
    with urllib.request.urlopen(request) as response:  # noqa: S310
        assert len(json.load(response)) == len(faults)


def run_suite(url: str, *arguments: str, profile: Path | None = PROFILE, key: str = KEY, slow: bool = False) -> Outcome:
    """Run the suite against a server, in a separate pytest process and folder; ``slow`` adds the slow lanes."""
    with tempfile.TemporaryDirectory(prefix="vllm-stage-defects-") as place:
        command = [
            *_choose_files(arguments), f"--stage-endpoint={url}", f"--stage-run-dir={place}/run",
            "-p", "no:cacheprovider", "-rfE", "--tb=short", "-q", *arguments,
        ]  # fmt: skip
        command += [f"--stage-profile={profile}"] if profile else []
        command += [] if slow else [f"--ignore={SUITE / 'test_slow_lanes.py'}"]
        printed = Path(place) / "output"
        forks().run(command, ROOT, _environ(key), printed)
        output = printed.read_text(errors="replace")
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|skipped|failed|errors?)", output)}
    assert counts, f"the suite did not run:\n{output}"
    return Outcome(_failed(output), counts.get("passed", 0), counts.get("skipped", 0), output)


def _choose_files(arguments: Sequence[str]) -> list[str]:
    """The suite; where ``-k`` names whole checks, only their files: to collect all takes longer than most checks."""
    wanted = arguments[arguments.index("-k") + 1].split(" or ") if "-k" in arguments else []
    checks = _find_checks()
    if not wanted or not checks.keys() >= set(wanted):
        return [str(SUITE)]
    return sorted({str(file) for name, file in checks.items() if any(part in name for part in wanted)})


@functools.cache
def _find_checks() -> dict[str, Path]:
    """Each check's file."""
    return {
        name: path
        for path in SUITE.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }


def _environ(key: str) -> dict[str, str]:
    """This environment without what would steer the inner pytest; the key, if any, for the suite."""
    # Under CI pytest repeats whole messages in its short summary.
    steering = ("PYTEST_ADDOPTS", "CI", "BUILD_NUMBER")
    environ = {name: value for name, value in os.environ.items() if name not in steering}
    return environ | {"VLLM_STAGE_REPORT": "never"} | ({"VLLM_STAGE_API_KEY": key} if key else {})


def _failed(output: str) -> dict[str, str]:
    """Each failed check with the first line of its own message."""
    found: dict[str, str] = {}
    names = list(dict.fromkeys(re.findall(r"^(?:FAILED|ERROR) \S*?::(\w+)", output, re.MULTILINE)))
    for name, lines in _read_messages(output):
        first = re.sub(r"^\w+(?:\.\w+)*(?:Error|Failed|Broken|Exception): ", "", lines[0])
        found.setdefault(name, first.removeprefix(STAGE_FAILED))
    return {name: found.get(name, "") for name in names}


def _read_messages(output: str) -> Iterator[tuple[str, list[str]]]:
    """Each failed check with the lines of its message; pytest marks those of an unexpected exception."""
    failures = re.split(r"^=+ (?:vllm-stage run|short test summary).*$", output, maxsplit=1, flags=re.MULTILINE)[0]
    sections = re.split(r"^_+ (?:ERROR at setup of )?(test_\w+)(?:\[.*\])? _+$", failures, flags=re.MULTILINE)
    for name, section in zip(sections[1::2], sections[2::2], strict=True):
        marked = re.findall(r"^E\s+(?:\|\s*)?(.+)$", section, re.MULTILINE)
        yield name, marked or section.strip().splitlines()
