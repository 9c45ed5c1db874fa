"""The upstream Python client must not notice that the registry is a stand-in.

Each client runs in an environment of its own: versions that speak different prefixes cannot share one, and the client
changes asyncio for the whole process. ``pytest -rP`` shows the tables of calls and results.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.journal import Journal
from tests import own_environment

pytestmark = pytest.mark.real

HERE = Path(__file__).parent
#: Client version to the only prefix that it speaks.
CLIENTS = {"0.3.18": "v1", "0.3.14": "v1alpha3", "0.3.9": "v1alpha3"}
OTHER = {"v1": "v1alpha3", "v1alpha3": "v1"}


@pytest.fixture(scope="module", params=CLIENTS)
def client(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A client's version and the Python that has it."""
    version: str = request.param
    requirement = f"model-registry=={version}"
    programs = own_environment.ensure("model-registry", HERE / "model_registry_client.txt", Journal(), requirement)
    return version, programs / "python"


@contextmanager
def standin(api: str) -> Iterator[str]:
    """A stand-in's URL."""
    command = [sys.executable, "-m", "pytest_vllm_stage.standins.registry", "--api", api]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


def calls(python: Path, url: str) -> subprocess.CompletedProcess[str]:
    script = str(HERE / "registry_client_calls.py")
    return subprocess.run([str(python), script, url], capture_output=True, text=True, timeout=300, check=False)


def table(results: list[dict[str, Any]]) -> str:
    """The calls and what they gave, one a line."""
    width = max(len(result["call"]) for result in results)
    marks = {True: "as expected", False: "DIFFERENT"}
    return "\n".join(f"{r['call']:<{width}}  {marks[r['good']]:<11}  {r['result'][:110]}" for r in results)


@pytest.mark.parametrize("api", ["its own prefix", "both"])
def test_every_call_gives_what_the_real_server_would(client: tuple[str, Path], api: str) -> None:
    version, python = client
    with standin("both" if api == "both" else CLIENTS[version]) as url:
        done = calls(python, url)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    results = found["calls"]
    sys.stdout.write(f"model-registry {found['client']}, {len(results)} calls\n{table(results)}\n")
    assert found["client"] == version
    assert len(results) > 55
    assert [result for result in results if not result["good"]] == []


def test_a_client_fails_at_once_on_a_server_of_the_other_prefix(client: tuple[str, Path]) -> None:
    version, python = client
    with standin(OTHER[CLIENTS[version]]) as url:
        done = calls(python, url)
    assert done.returncode == 1
    assert "NotFoundException: (404)" in done.stderr
    assert "404 page not found" in done.stderr
