"""Processes on loopback for tests of what talks to them: MinIO, the stand-in for the Model Registry, and vLLM."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from pytest_vllm_stage.cluster.local import components
from pytest_vllm_stage.core import processor
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.engine import environment
from pytest_vllm_stage.engine.environment import EngineEnvironment
from pytest_vllm_stage.publication.bucket.bucket import Bucket
from pytest_vllm_stage.stage.s3 import ObjectStore

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


#: One thread, one process, and no compiler: the least of this machine that serves.
VLLM_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True)
class MinioServer:
    """A MinIO process.

    Attributes:
        url: Root of its S3 API.
        access: Its root user.
        secret: The password.
    """

    url: str
    access: str
    secret: str

    def store(self, secret: str | None = None) -> ObjectStore:
        """Access to it; with another ``secret``, with credentials that are no longer valid."""
        keys = Secret(self.access), Secret(secret or self.secret)
        return ObjectStore(self.url, *keys, credentials="secret minio-credentials")

    def client(self) -> S3Client:
        return self.store().client()

    def new_bucket(self) -> Bucket:
        """A bucket that no other test uses."""
        bucket = Bucket(self.store(), f"results-{uuid.uuid4().hex[:8]}")
        bucket.client.create_bucket(Bucket=bucket.name)
        return bucket


@contextmanager
def minio(folder: Path) -> Iterator[MinioServer]:
    """MinIO over a folder, with credentials that this process made."""
    program = components.ensure(Journal(), ["minio"])["minio"]
    access, secret, port = secrets.token_hex(8), secrets.token_hex(16), _free_port()
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {"MINIO_ROOT_USER": access, "MINIO_ROOT_PASSWORD": secret, "MINIO_BROWSER": "off"}
    command = [str(program), "server", str(folder / "data"), f"--address=127.0.0.1:{port}"]
    with run_process(command, environment, folder / "minio.log"):
        _await(f"{url}/minio/health/ready")
        yield MinioServer(url, access, secret)


@dataclass(frozen=True)
class Standin:
    """The stand-in's process.

    Attributes:
        url: Its root.
    """

    url: str

    def reset(self) -> None:
        """Forget everything."""
        httpx.post(f"{self.url}/standin/reset", trust_env=False).raise_for_status()

    def faults(self, *script: Any) -> None:
        """Replace its faults."""
        httpx.put(f"{self.url}/standin/faults", json=list(script), trust_env=False).raise_for_status()

    def writes(self) -> list[str]:
        """The POSTs and PATCHes that it received, as ``PATCH model_versions/2``."""
        log = httpx.get(f"{self.url}/standin/requests", trust_env=False).json()
        return [f"{one['method']} {one['path'].split('/', 4)[4]}" for one in log if one["method"] in ("POST", "PATCH")]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request as another client."""
        answer = httpx.request(method, f"{self.url}/api/model_registry/v1alpha3/{path}", json=body, trust_env=False)
        answer.raise_for_status()
        return answer.json()

    def set_properties(self, version_id: str, changes: dict[str, Any]) -> None:
        """Change some properties and keep the rest; None removes one."""
        there = self.call("GET", f"model_versions/{version_id}")["customProperties"] | changes
        kept = {name: raw for name, raw in there.items() if raw is not None}
        self.call("PATCH", f"model_versions/{version_id}", {"customProperties": kept})


@contextmanager
def standin(folder: Path, api: str = "both") -> Iterator[Standin]:
    """The stand-in over a new database."""
    port = _free_port()
    command = [sys.executable, "-m", "pytest_vllm_stage.standins.registry", f"--port={port}", f"--api={api}"]
    with run_process([*command, f"--database={folder / f'registry-{port}.db'}"], None, folder / f"standin-{port}.log"):
        _await(f"http://127.0.0.1:{port}/readyz/health")
        yield Standin(f"http://127.0.0.1:{port}")


@contextmanager
def vllm(engine: EngineEnvironment, model: Path, name: str, log: Path, *arguments: str) -> Iterator[str]:
    """A real vLLM server with a model from this machine; yields its URL."""
    port = _free_port()
    command = [str(engine.python), "-P", "-m", "vllm.entrypoints.openai.api_server", "--host=127.0.0.1"]
    command += [f"--port={port}", f"--model={model}", f"--served-model-name={name}", "--enforce-eager"]
    # As the local overlay does: see host-runtime/runtime.yaml.
    slow = not processor.has(processor.AVX512)
    command += ["--dtype=float32", "--kv-cache-memory-bytes=256M"] if slow else ["--kv-cache-memory-bytes=128M"]
    command += arguments
    settings = environment.clean_environ() | VLLM_SETTINGS
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=settings, stdout=output, stderr=output, cwd=log.parent)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(
            f"vLLM serving {name}",
            lambda: _look_at_vllm(server, f"{url}/health", log),
            timeout_s=300,
            journal=Journal(),
            error=EnvironmentUnusable,
        )
        yield url
    finally:
        server.terminate()
        server.wait(60)


def _look_at_vllm(server: subprocess.Popen[bytes], url: str, log: Path) -> Observation:
    if server.poll() is not None:
        return Observation(False, "ended", fatal=f"ended with {server.returncode}:\n{log.read_text()[-3000:]}")
    return _look(url)


@contextmanager
def run_process(command: list[str], environment: dict[str, str] | None, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the end of the block; its output goes into the log."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await(url: str) -> None:
    wait_until(
        f"GET {url}", lambda: _look(url), timeout_s=120, journal=Journal(), interval_s=0.1, error=EnvironmentUnusable
    )


def _look(url: str) -> Observation:
    try:
        status = httpx.get(url, trust_env=False, timeout=2).status_code
    except httpx.HTTPError as error:
        return Observation(False, f"{type(error).__name__}: {error}")
    return Observation(status == 200, f"HTTP {status}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
