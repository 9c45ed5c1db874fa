"""GPUs of a server on this machine: found by the files that its processes have open, and read through NVML.

`FakeNvml` has the contract of ``pynvml``: structures with attributes, and an `NVMLError` for everything that fails.
"""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_vllm_stage.load import nvml
from pytest_vllm_stage.load.driver import LoadJob, create_monitor
from pytest_vllm_stage.load.nvml import LocalGpus, find_server_gpus, open_gpus, open_local_gpus
from pytest_vllm_stage.measurement.samples import GpuReading
from tests.unit.made_samples import open_step

NOT_SUPPORTED, DRIVER_NOT_LOADED = 3, 9
GIB = 1024**3


class NVMLError(Exception):
    """As in ``pynvml``: one class, with the code as its value."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value


@dataclass
class FakeNvml:
    """Two GPUs whose device files have the opposite order; `broken` calls fail with their code."""

    broken: dict[str, int] = field(default_factory=dict)
    opened: int = 0
    NVMLError: Any = NVMLError

    def _call(self, name: str) -> None:
        if name in self.broken:
            raise NVMLError(self.broken[name])

    def nvmlInit(self) -> None:  # noqa: N802
        self._call("init")
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._call("count")
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"handle {index}"

    def nvmlDeviceGetMinorNumber(self, handle: str) -> int:  # noqa: N802
        self._call("minor")
        return 1 - int(handle[-1])

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        self._call("memory")
        return SimpleNamespace(total=80 * GIB, free=70 * GIB, used=(10 + int(handle[-1])) * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        self._call("utilization")
        return SimpleNamespace(gpu=50 + int(handle[-1]), memory=20)


def opened(library: FakeNvml, *minors: int) -> LocalGpus:
    found = open_gpus(library, minors)
    assert found is not None
    return found


def test_gpus_are_read_by_their_device_files() -> None:
    assert opened(FakeNvml(), 0, 1).read() == (GpuReading("0", 10 * GIB, 0.5), GpuReading("1", 11 * GIB, 0.51))
    assert opened(FakeNvml(), 0).read() == (GpuReading("1", 11 * GIB, 0.51),)


@pytest.mark.parametrize(
    ("call", "expected"), [("memory", GpuReading("0", None, 0.5)), ("utilization", GpuReading("0", 10 * GIB, None))]
)
def test_unsupported_value_is_absent_and_not_zero(call: str, expected: GpuReading) -> None:
    assert opened(FakeNvml({call: NOT_SUPPORTED}), 1).read() == (expected,)


@pytest.mark.parametrize("call", ["init", "count", "minor"])
def test_missing_driver_gives_no_gpus_and_leaves_nothing_open(call: str) -> None:
    library = FakeNvml({call: DRIVER_NOT_LOADED})
    assert open_gpus(library, [0, 1]) is None
    assert library.opened == 0


def test_other_gpus_are_not_read() -> None:
    library = FakeNvml()
    assert open_gpus(library, [7]) is None
    assert library.opened == 0


def process(proc: Path, number: int, parent: int, *files: str) -> None:
    """A process as ``/proc`` shows it."""
    folder = proc / str(number) / "fd"
    folder.mkdir(parents=True)
    (folder.parent / "stat").write_text(f"{number} (a name) x) S {parent} 1 1")
    for place, path in enumerate(files):
        (folder / str(place)).symlink_to(path)


def listening(proc: Path, port: int, inode: int) -> None:
    (proc / "net").mkdir()
    row = f"   0: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 {inode} 1"
    (proc / "net" / "tcp").write_text(f"  sl  local_address ...\n{row}\n")


def test_gpus_of_the_listening_process_and_its_descendants_are_found(tmp_path: Path) -> None:
    listening(tmp_path, 8000, 77)
    process(tmp_path, 10, 1, "socket:[77]", "/dev/null")
    process(tmp_path, 11, 10, "/dev/nvidiactl", "/dev/nvidia-uvm")
    process(tmp_path, 12, 11, "/dev/nvidia3", "/dev/nvidiactl")
    process(tmp_path, 20, 1, "/dev/nvidia0")
    assert find_server_gpus("127.0.0.1", 8000, tmp_path) == {3}
    assert find_server_gpus("127.0.0.1", 8001, tmp_path) == set()


def test_tunnel_has_no_gpus_although_the_machine_has(tmp_path: Path) -> None:
    listening(tmp_path, 8000, 77)
    process(tmp_path, 10, 1, "socket:[77]")
    process(tmp_path, 20, 1, "/dev/nvidia0")
    assert find_server_gpus("127.0.0.1", 8000, tmp_path) == set()


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_server_elsewhere_has_no_local_gpus(host: str, tmp_path: Path) -> None:
    listening(tmp_path, 8000, 77)
    process(tmp_path, 10, 1, "socket:[77]", "/dev/nvidia0")
    assert find_server_gpus(host, 8000, tmp_path) == set()


def test_own_listening_socket_is_found_in_the_real_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that this process has open stands for the device."""
    monkeypatch.setattr(nvml, "_DEVICE", re.compile(rf"{re.escape(str(tmp_path.resolve()))}/nvidia(\d+)$"))
    with socket.create_server(("127.0.0.1", 0)) as server, (tmp_path / "nvidia5").open("w"):
        assert find_server_gpus("127.0.0.1", server.getsockname()[1]) == {5}
    assert find_server_gpus("127.0.0.1", unused_port()) == set()


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_without_the_extra_no_gpu_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(nvml, "find_server_gpus", lambda _host, _port: {0})
    monkeypatch.setattr(nvml, "import_module", missing)
    assert open_local_gpus("127.0.0.1", 8000) is None


def test_monitor_reads_local_gpus_unless_an_exporter_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml()
    monkeypatch.setattr(nvml, "find_server_gpus", lambda _host, _port: {0, 1})
    monkeypatch.setattr(nvml, "import_module", lambda _name: library)

    async def read(gpu_metrics_url: str | None) -> list[Any]:
        job = LoadJob(open_step(), f"http://127.0.0.1:{unused_port()}", [], gpu_metrics_url=gpu_metrics_url)
        monitor = create_monitor(job, 0.0)
        await monitor.read()
        await monitor.close()
        return monitor.readings

    (reading,) = asyncio.run(read(None))
    assert reading.running is None
    assert (reading.gpu_memory_used_bytes, reading.gpu_utilization) == (21 * GIB, pytest.approx(0.505))
    assert [one.gpu for one in reading.gpus] == ["0", "1"]
    assert library.opened == 0
    assert asyncio.run(read("http://127.0.0.1:1/metrics")) == []
