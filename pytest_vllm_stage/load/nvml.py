"""GPU memory and utilisation of a server on this machine, read through NVML (extra ``gpu``: ``nvidia-ml-py``).

Only GPUs that the server's processes have opened are read: the process that listens on the endpoint's port and its
descendants. An endpoint behind a tunnel or a port-forward has none, so that the GPUs of this machine are never reported
for a server elsewhere.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from pytest_vllm_stage.measurement.samples import GpuReading

_PROC = Path("/proc")
_LISTENS = "0A"
_DEVICE = re.compile(r"/dev/nvidia(\d+)$")


class LocalGpus:
    """The GPUs of a server on this machine.

    Args:
        library: The module ``pynvml``, initialised.
        handles: GPU's name to its handle.
    """

    def __init__(self, library: Any, handles: dict[str, Any]) -> None:
        self._library = library
        self._handles = handles

    def read(self) -> tuple[GpuReading, ...]:
        """One reading per GPU; a value that the GPU does not support is None."""
        return tuple(self._read(gpu, handle) for gpu, handle in self._handles.items())

    def close(self) -> None:
        """Release the library."""
        with suppress(self._library.NVMLError):
            self._library.nvmlShutdown()

    def _read(self, gpu: str, handle: Any) -> GpuReading:
        memory = utilization = None
        with suppress(self._library.NVMLError):
            memory = float(self._library.nvmlDeviceGetMemoryInfo(handle).used)
        with suppress(self._library.NVMLError):
            utilization = self._library.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        return GpuReading(gpu, memory, utilization)


def open_local_gpus(host: str, port: int) -> LocalGpus | None:
    """Open the GPUs of the server at an address.

    None where the server is not on this machine or has opened no GPU, or where NVML is not installed or has no driver.
    """
    minors = find_server_gpus(host, port)
    if not minors:
        return None
    try:
        library = import_module("pynvml")
    except ImportError:
        return None
    return open_gpus(library, minors)


def open_gpus(library: Any, minors: Iterable[int]) -> LocalGpus | None:
    """Open GPUs by the numbers of their device files; None where the library finds none of them."""
    try:
        library.nvmlInit()
    except library.NVMLError:
        return None
    wanted, handles = set(minors), {}
    with suppress(library.NVMLError):
        for index in range(library.nvmlDeviceGetCount()):
            with suppress(library.NVMLError):
                handle = library.nvmlDeviceGetHandleByIndex(index)
                if library.nvmlDeviceGetMinorNumber(handle) in wanted:
                    handles[str(index)] = handle
    found = LocalGpus(library, handles)
    if handles:
        return found
    found.close()
    return None


def find_server_gpus(host: str, port: int, proc: Path = _PROC) -> set[int]:
    """The numbers of the GPUs that the server's processes have opened; empty where it is not on this machine."""
    if not _is_local(host):
        return set()
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port, proc)}
    files = {process: _open_files(process) for process in proc.glob("[0-9]*")} if sockets else {}
    listeners = {process.name for process, opened in files.items() if sockets & opened}
    parents = {process.name: _parent(process) for process in files}
    return {
        int(found[1])
        for process, opened in files.items()
        if listeners & set(_ancestry(process.name, parents))
        for path in opened
        if (found := _DEVICE.match(path))
    }


def _is_local(host: str) -> bool:
    """An address of this machine: one that a socket can be bound to."""
    try:
        family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        if ipaddress.ip_address(address[0]).is_loopback:
            return True
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except (OSError, ValueError):
        return False
    return True


def _listening_inodes(port: int, proc: Path) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        for line in _text(proc / "net" / name).splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def _open_files(process: Path) -> set[str]:
    """What the process has open; nothing of another user's process."""
    opened = set()
    with suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                opened.add(str(descriptor.readlink()))
    return opened


def _parent(process: Path) -> str:
    """The parent's number; the name in parentheses in front of it may contain spaces."""
    fields = _text(process / "stat").rpartition(")")[2].split()
    return fields[1] if len(fields) > 1 else ""


def _ancestry(process: str, parents: dict[str, str]) -> Iterator[str]:
    seen: set[str] = set()
    while process and process not in seen:
        seen.add(process)
        yield process
        process = parents.get(process, "")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
