"""The address range of a local cluster: it collides with nothing that the machine routes."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllm_stage.cluster.local import network
from pytest_vllm_stage.cluster.local.network import CANDIDATES, Addresses, blocks, choose
from pytest_vllm_stage.core.errors import EnvironmentUnusable

NETWORKS = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 32)).map(
    lambda pair: IPv4Network((pair[0] & ~((1 << (32 - pair[1])) - 1), pair[1]))
)


def test_an_idle_machine_gets_the_first_block() -> None:
    assert choose([]) == IPv4Network("10.219.0.0/20")


def test_a_default_route_takes_nothing() -> None:
    assert choose([IPv4Network("0.0.0.0/0")]) == IPv4Network("10.219.0.0/20")


@pytest.mark.parametrize(
    ("routed", "chosen"),
    [
        ("10.219.0.0/24", "10.219.16.0/20"),
        ("10.219.15.255/32", "10.219.16.0/20"),
        ("10.219.16.0/24", "10.219.0.0/20"),
        ("10.219.0.0/16", "10.98.0.0/20"),
        ("10.0.0.0/8", "172.29.0.0/20"),
    ],
)
def test_routed_ranges_are_skipped(routed: str, chosen: str) -> None:
    assert choose([IPv4Network(routed)]) == IPv4Network(chosen)


def test_no_free_range_names_the_command_that_shows_the_routes() -> None:
    with pytest.raises(EnvironmentUnusable, match="no free address range") as caught:
        choose(CANDIDATES)
    assert "ip -4 route" in caught.value.hint


@given(st.lists(NETWORKS, max_size=8))
def test_the_choice_never_overlaps(routed: list[IPv4Network]) -> None:
    try:
        chosen = choose(routed)
    except EnvironmentUnusable:
        assert all(any(block.overlaps(other) for other in routed) for block in blocks())
    else:
        assert not any(chosen.overlaps(other) for other in routed)


@pytest.mark.parametrize("block", [*blocks()][::7], ids=str)
def test_parts_of_a_block_are_inside_it_and_disjoint(block: IPv4Network) -> None:
    addresses = Addresses(block)
    link = IPv4Network(f"{addresses.host}/30", strict=False)
    parts = [link, addresses.pods, addresses.services]
    assert all(part.subnet_of(block) for part in parts)
    assert not any(one.overlaps(other) for one in parts for other in parts if one is not other)
    assert addresses.node in link
    assert addresses.kubernetes_service in addresses.services


def test_taken_reads_destinations_and_host_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = (
        '[{"dst":"default"},{"dst":"10.219.0.0/24"},{"dst":"192.0.2.2"},{"type":"unreachable","dst":"10.98.0.0/20"}]'
    )
    monkeypatch.setattr(network, "_ip", lambda *_: shown)
    assert network.taken() == [IPv4Network(text) for text in ("10.219.0.0/24", "192.0.2.2/32", "10.98.0.0/20")]


def test_only_our_links_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["lo", "eth0", "vstage12ab34", "vstage1", "vstagecoach99x"]
    monkeypatch.setattr(network, "_ip_json", lambda *_: [{"ifname": name} for name in names])
    assert network.links() == ["vstage12ab34"]
