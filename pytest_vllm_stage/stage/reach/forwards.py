"""The port-forwards of this process: facts name a Service, and each process that uses it forwards for itself.

Facts are shared between processes, and an xdist worker ends before the others: a forward of one process cannot serve
the next one. So facts have a URL ``port-forward://SERVICE.NAMESPACE:PORT``, which `open_url` turns into one of here;
``port-forward+tls`` for a port that speaks TLS.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.stage.facts import StageFacts

if TYPE_CHECKING:
    from pytest_vllm_stage.stage.reach.forward import ServiceForward

SCHEME = "port-forward"
TLS_SCHEME = f"{SCHEME}+tls"
#: The PEM file of the authorities that a run trusts; called for a port that speaks TLS alone.
FindAuthorities = Callable[[], str | None]
_LOCK = threading.Lock()
_OPEN: dict[str, ServiceForward] = {}


def forward_url(namespace: str, service: str, port: str, *, tls: bool = False) -> str:
    """The URL that facts have for a Service behind a port-forward."""
    return f"{TLS_SCHEME if tls else SCHEME}://{service}.{namespace}:{port}"


def is_forward(url: str) -> bool:
    """Whether facts name a port-forward by it."""
    return url.partition(":")[0] in (SCHEME, TLS_SCHEME)


def open_url(cluster: ClusterFacts, url: str, find_authorities: FindAuthorities) -> str:
    """A URL as this process reaches it: one of a port-forward becomes an address of this machine.

    Raises:
        StageError: the cluster does not answer, or the authorities cannot be read.
    """
    if not is_forward(url):
        return url
    found = _forward_for(cluster, url)
    if _speaks_tls(url):
        found.trust(find_authorities())
    return f"http://{found.address}"


def check(cluster: ClusterFacts, url: str) -> None:
    """Open one connection through a port-forward.

    Raises:
        StageError: it leads nowhere.
    """
    _forward_for(cluster, url).check()


def localise(cluster: ClusterFacts, stage: StageFacts, find_authorities: FindAuthorities) -> StageFacts:
    """The facts of a stage with the addresses that this process reaches."""
    targets = tuple(
        dataclasses.replace(target, base_url=open_url(cluster, target.base_url, find_authorities))
        for target in stage.targets
    )
    minio_url = stage.minio_url and open_url(cluster, stage.minio_url, find_authorities)
    return dataclasses.replace(stage, targets=targets, minio_url=minio_url)


def find_local(url: str) -> ServiceForward | None:
    """The forward of this process behind an address of this machine."""
    return next((found for found in _OPEN.values() if urlsplit(url).netloc == found.address), None)


def find_breaks(since_s: float) -> list[str]:
    """Why connections of this process broke on the way since a time, a line per Service."""
    return [text for found in list(_OPEN.values()) if (text := found.find_break(since_s))]


def close_all() -> None:
    """Close the forwards of this process."""
    with _LOCK:
        for found in _OPEN.values():
            found.close()
        _OPEN.clear()


def _speaks_tls(url: str) -> bool:
    return url.partition(":")[0] == TLS_SCHEME


def _forward_for(cluster: ClusterFacts, url: str) -> ServiceForward:
    from pytest_vllm_stage.cluster.client import connect_to
    from pytest_vllm_stage.stage.reach.forward import ServiceForward

    with _LOCK:
        if url not in _OPEN:
            parts = urlsplit(url)
            service, _, namespace = (parts.hostname or "").partition(".")
            kube, tls = connect_to(cluster), _speaks_tls(url)
            _OPEN[url] = ServiceForward(kube, namespace, service, str(parts.port), tls=tls)
        return _OPEN[url]
