"""The cluster's addresses, and the host's side of its network: a veth pair, and routes with our protocol number."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from pytest_vllm_stage.core.errors import EnvironmentUnusable

#: Ranges tried in this order, each in blocks of `BLOCK_PREFIX`; private addresses that few networks use.
CANDIDATES = (IPv4Network("10.219.0.0/16"), IPv4Network("10.98.0.0/16"), IPv4Network("172.29.0.0/16"))
BLOCK_PREFIX = 20
#: Marks the clusters' routes in the host's tables (``ip route show proto 219``); no routing daemon has registered it.
ROUTE_PROTOCOL = "219"
LINK_PREFIX = "vstage"
#: Worse than any other route: it only matches what no route of the cluster matches.
LAST_RESORT_METRIC = "4278198272"


@dataclass(frozen=True)
class Addresses:
    """How a cluster divides its block.

    Attributes:
        block: The whole range.
    """

    block: IPv4Network

    @property
    def host(self) -> IPv4Address:
        """The host's end of the veth pair."""
        return self.block[1]

    @property
    def node(self) -> IPv4Address:
        """The node, the API server and the cluster's DNS."""
        return self.block[2]

    @property
    def pods(self) -> IPv4Network:
        return list(self.block.subnets(new_prefix=22))[1]

    @property
    def services(self) -> IPv4Network:
        """Service cluster IPs."""
        return list(self.block.subnets(new_prefix=22))[2]

    @property
    def kubernetes_service(self) -> IPv4Address:
        """The cluster IP of the Service ``kubernetes``."""
        return self.services[1]


def blocks() -> Iterator[IPv4Network]:
    """Every block that a cluster may take, in the order tried."""
    for candidate in CANDIDATES:
        yield from candidate.subnets(new_prefix=BLOCK_PREFIX)


def choose(taken: Iterable[IPv4Network]) -> IPv4Network:
    """The first block that overlaps nothing of ``taken``; default routes do not count.

    Raises:
        EnvironmentUnusable: every block overlaps.
    """
    used = [network for network in taken if network.prefixlen]
    for block in blocks():
        if not any(block.overlaps(network) for network in used):
            return block
    ranges = ", ".join(map(str, CANDIDATES))
    raise EnvironmentUnusable(
        f"no free address range for a local cluster: every /{BLOCK_PREFIX} of {ranges} is routed on this machine",
        hint="show the routes: ip -4 route show table all",
    )


def taken() -> list[IPv4Network]:
    """The ranges that the host already routes, its own addresses included."""
    destinations = [route["dst"] for route in _ip_json("-4", "route", "show", "table", "all")]
    return [IPv4Network(destination, strict=False) for destination in destinations if destination != "default"]


def connect(link: str, addresses: Addresses, namespace_pid: int) -> None:
    """Create the veth pair, its far end ``eth0`` in that process's network namespace, and the routes over it."""
    ours = ("proto", ROUTE_PROTOCOL)
    # First, so that no packet for the cluster ever takes the default route off this machine.
    _ip("route", "add", "unreachable", str(addresses.block), "metric", LAST_RESORT_METRIC, *ours)
    _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(namespace_pid))
    _ip("link", "set", link, "addrgenmode", "none")
    _ip("address", "add", f"{addresses.host}/30", "dev", link)
    _ip("link", "set", link, "up")
    for range_ in (addresses.pods, addresses.services):
        _ip("route", "add", str(range_), "via", str(addresses.node), "dev", link, *ours)


def links() -> list[str]:
    """The host's ends of clusters' veth pairs."""
    return sorted(link["ifname"] for link in _ip_json("link", "show") if _is_ours(link["ifname"]))


def _is_ours(name: str) -> bool:
    return name.startswith(LINK_PREFIX) and len(name) == len(LINK_PREFIX) + 6


def routes() -> list[str]:
    """The host's routes of clusters, as ``ip route`` prints them."""
    shown = _ip("-4", "route", "show", "table", "all", "proto", ROUTE_PROTOCOL)
    return [" ".join(line.split()) for line in shown.splitlines() if line.strip()]


def has_link(name: str) -> bool:
    """Whether the veth pair exists."""
    return name in links()


def has_route(route: str) -> bool:
    """Whether the route exists, as `routes` returned it."""
    return route in routes()


def remove_link(name: str) -> None:
    """Delete a veth pair."""
    _ip("link", "delete", name)


def remove_route(route: str) -> None:
    """Delete a route as `routes` returned it."""
    _ip("route", "delete", *route.split())


def _ip(*arguments: str) -> str:
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise EnvironmentUnusable(f"ip {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout


def _ip_json(*arguments: str) -> list[dict[str, str]]:
    text = _ip("-json", *arguments)
    parsed: list[dict[str, str]] = json.loads(text) if text.strip() else []
    return parsed
