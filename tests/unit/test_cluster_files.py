"""The configuration files and programs of a local cluster, checked without running them."""

from __future__ import annotations

import json
import tomllib
from ipaddress import IPv4Network, ip_address
from pathlib import Path

import pytest
import yaml

from pytest_vllm_stage.cluster.local import files, images, packages, status
from pytest_vllm_stage.cluster.local.components import COMPONENTS
from pytest_vllm_stage.cluster.local.layout import Layout
from pytest_vllm_stage.cluster.local.network import Addresses
from pytest_vllm_stage.cluster.local.programs import Mount, Plan, Program, all_programs


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path, Addresses(IPv4Network("10.219.16.0/20")), "/vllm-stage-0a1b2c")


@pytest.fixture
def programs(layout: Layout) -> tuple[Program, ...]:
    paths = {name: Path("/cache", name) for component in COMPONENTS for name in component.programs}
    return all_programs(layout, paths, [Path("/cache/base.tar")])


def test_containerd_gets_a_root_of_its_own_and_the_built_pause_image(layout: Layout) -> None:
    parsed = tomllib.loads(files.containerd(layout, Path("/usr/lib/cni"), restrict_oom=True))
    cri = parsed["plugins"]["io.containerd.grpc.v1.cri"]
    assert parsed["root"] == str(layout.state_dir / "containerd")
    assert cri["sandbox_image"] == images.PAUSE
    assert cri["restrict_oom_score_adj"] is True
    assert cri["cni"] == {"bin_dir": "/usr/lib/cni", "conf_dir": str(layout.etc / "cni")}
    assert cri["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is False


@pytest.mark.parametrize(
    ("bits", "expected"), [("000001fffeffffff", False), ("000001ffffffffff", True), ("0000000001000000", True)]
)
def test_oom_scores_need_cap_sys_resource(bits: str, expected: bool) -> None:
    assert files.may_lower_oom(f"Name:\tx\nCapPrm:\t0\nCapEff:\t{bits}\nCapBnd:\t0\n") is expected


def test_kubelet_works_below_the_clusters_cgroup_and_evicts_by_absolute_room(layout: Layout) -> None:
    kubelet = files.kubelet(layout)
    assert kubelet["cgroupRoot"] == "/vllm-stage-0a1b2c"
    assert kubelet["clusterDNS"] == ["10.219.16.2"] == [kubelet["address"]]
    assert kubelet["failCgroupV1"] is False
    assert not [value for value in kubelet["evictionHard"].values() if "%" in value]
    assert kubelet["authentication"]["anonymous"] == {"enabled": False}


def test_pods_get_addresses_from_the_pods_range(layout: Layout) -> None:
    (plugin,) = files.network(layout)["plugins"]
    assert plugin["ipam"]["ranges"] == [[{"subnet": "10.219.20.0/22"}]]
    assert plugin["type"] in packages._CNI_PLUGINS
    assert plugin["ipam"]["type"] in packages._CNI_PLUGINS


def test_dns_answers_at_the_nodes_address_only(layout: Layout) -> None:
    lines = [line.split() for line in files.corefile(layout).splitlines()]
    assert ["bind", "10.219.16.2"] in lines
    assert not [line for line in lines if line[:1] == ["forward"]]


def test_files_with_secrets_are_for_their_owner_only(layout: Layout) -> None:
    files.write_all(layout, Path("/usr/lib/cni"))
    kubeconfig = yaml.safe_load(layout.kubeconfig.read_text())
    assert kubeconfig["clusters"][0]["cluster"]["server"] == "https://10.219.16.2:6443"
    assert kubeconfig["current-context"] == files.CONTEXT == kubeconfig["contexts"][0]["name"]
    for path in (layout.kubeconfig, layout.etc / "node.kubeconfig", layout.etc / "kubelet.json"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_every_program_waits_only_for_existing_programs(programs: tuple[Program, ...]) -> None:
    names = [program.name for program in programs]
    assert len(set(names)) == len(names)
    for program in programs:
        waits = [name for name in program.after if not name.startswith("file:")]
        assert set(waits) < set(names) - {program.name}
        assert names.index(program.name) > max([names.index(name) for name in waits], default=-1), "an order exists"


def test_etcd_and_the_probes_are_on_loopback_or_the_node(programs: tuple[Program, ...]) -> None:
    for program in programs:
        if "://" in program.probe:
            host = program.probe.split("/")[2].rpartition(":")[0]
            assert ip_address(host).is_loopback or host == "10.219.16.2"
    etcd = next(program for program in programs if program.name == "etcd")
    urls = [part.partition("=")[2] for part in etcd.argv if "urls=" in part]
    assert len(urls) >= 3
    assert all(url.startswith("http://127.0.0.1:") for url in urls)


def test_no_argument_holds_a_secret(programs: tuple[Program, ...], layout: Layout) -> None:
    """Keys are named by path: arguments can be read by every user of the machine."""
    assert not [part for program in programs for part in program.argv if "token" in part or "password" in part]
    keys = [part for program in programs for part in program.argv if "key" in part.lower() and "=" in part]
    assert len(keys) >= 4
    assert all(part.partition("=")[2].startswith(str(layout.state_dir / "pki")) for part in keys)


def test_a_plan_survives_its_file(programs: tuple[Program, ...]) -> None:
    mounts = (Mount("/engine", "/mnt/vllm-stage/engine", True), Mount("/v", "/mnt/vllm-stage/volumes", False))
    plan = Plan(mounts, programs, "10.219.16.2/30", "10.219.24.0/22", "/pki/ca.crt", "/logs", "/programs.json")
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (status.ProgramState(), "not started"),
        (status.ProgramState(running=True, starts=1), "running"),
        (status.ProgramState(running=True, starts=1, ready_at=1.0), "ready"),
        (status.ProgramState(running=True, starts=2, last_exit=1), "running, exited with 1"),
        (status.ProgramState(starts=4, last_exit=-9, failed=True), "ended 4 times, exited with -9"),
    ],
)
def test_a_programs_state_in_words(state: status.ProgramState, expected: str, tmp_path: Path) -> None:
    assert state.describe() == expected
    status.write(tmp_path / "programs.json", status.to_json({"etcd": state}))
    assert status.read(tmp_path / "programs.json") == {"etcd": state}


def test_there_is_no_state_before_the_first_report(tmp_path: Path) -> None:
    assert status.read(tmp_path / "programs.json") == {}


def test_kubelet_configuration_is_json(layout: Layout) -> None:
    files.write_all(layout, Path("/usr/lib/cni"))
    assert json.loads((layout.etc / "kubelet.json").read_text()) == files.kubelet(layout)
