"""A pytest plugin for runs that must not reach anything of a cluster but its API server."""

from __future__ import annotations

from pytest_vllm_stage.stage.deploy import addresses


def probe(url: str) -> str:
    """No address accepts a connection, as on a machine outside the cluster's network."""
    del url
    return "is not reachable from here"


def pytest_configure() -> None:
    """Reach nothing by an address."""
    addresses.probe = probe
