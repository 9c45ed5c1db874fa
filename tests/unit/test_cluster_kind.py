"""Clusters of kind, with stand-ins for kind and the container runtimes: creation, removal, leftovers and errors."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_vllm_stage.cluster import kind
from pytest_vllm_stage.cluster.kind import __main__ as program
from pytest_vllm_stage.cluster.kind import kserve, lifecycle, options, record, runtime
from pytest_vllm_stage.cluster.local import components, images, pki
from pytest_vllm_stage.cluster.local.process import ProcessRef
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from tests.unit.fake_kind import FakePrograms, write_kserve_files

SILENT = Journal()


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePrograms:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl")
    made = FakePrograms(tmp_path)
    (made.bin / "openssl").symlink_to(openssl)
    monkeypatch.setenv("PATH", str(made.bin))
    monkeypatch.setenv("VLLM_STAGE_CACHE_DIR", str(tmp_path / "cache"))
    for name in (runtime.PROVIDER_VARIABLE, options.CONFIG_VARIABLE, options.IMAGES_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    manager = write_kserve_files(tmp_path)
    monkeypatch.setattr(
        components, "ensure", lambda journal, names: {"kserve-manager": manager, "kind": tmp_path / "built"}
    )
    monkeypatch.setattr(images, "ensure", lambda wanted: [tmp_path / "kserve.tar"])
    return made


def start(**more: object) -> object:
    return kind.start(run_id="run-1", lifeline_pid=os.getpid(), journal=SILENT, **more)  # type: ignore[arg-type]


def test_neither_docker_nor_podman(fakes: FakePrograms) -> None:
    with pytest.raises(
        EnvironmentUnusable, match="--stage-cluster=kind: neither docker nor podman is on the PATH"
    ) as no:
        start()
    assert (
        no.value.hint
        == "install one, for example: apt-get install docker.io; or run without containers: --stage-cluster=local"
    )
    assert kind.running() == []


def test_a_daemon_that_does_not_run(fakes: FakePrograms) -> None:
    fakes.add("docker", "kind")
    fakes.fail("docker", "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the daemon running?")
    with pytest.raises(
        EnvironmentUnusable, match=r"docker is installed and does not answer: Cannot connect to the D"
    ) as no:
        start()
    assert no.value.hint.startswith("start it: systemctl start docker")
    assert fakes.calls("kind") == []


@pytest.mark.parametrize(
    ("variable", "installed", "chosen"),
    [
        ("", ("docker", "podman"), "docker"),
        ("", ("podman",), "podman"),
        ("podman", ("docker", "podman"), "podman"),
    ],
)
def test_the_runtime_is_that_of_the_variable_else_docker_else_podman(
    fakes: FakePrograms, variable: str, installed: tuple[str, ...], chosen: str
) -> None:
    fakes.add("kind", *installed)
    found = runtime.find_runtime(SILENT, {runtime.PROVIDER_VARIABLE: variable})
    assert (found.provider, found.program, found.kind) == (chosen, str(fakes.bin / chosen), str(fakes.bin / "kind"))
    found.run_kind("version")
    assert fakes.calls("kind") == [f"{chosen} version"], "kind uses the same"


def test_a_runtime_that_is_unknown_or_missing(fakes: FakePrograms) -> None:
    fakes.add("docker")
    with pytest.raises(ConfigError, match="KIND_EXPERIMENTAL_PROVIDER: unknown value 'nerdctl'; valid: docker, podman"):
        runtime.find_runtime(SILENT, {runtime.PROVIDER_VARIABLE: "nerdctl"})
    with pytest.raises(EnvironmentUnusable, match=r"podman .KIND_EXPERIMENTAL_PROVIDER. is not on the PATH") as no:
        runtime.find_runtime(SILENT, {runtime.PROVIDER_VARIABLE: "podman"})
    assert "apt-get install podman;" in no.value.hint


def test_kind_is_built_where_the_path_has_none(fakes: FakePrograms, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.find_kind(SILENT) == str(fakes.folder / "built")

    def fail(*_: object) -> None:
        raise EnvironmentUnusable("build of kind failed")

    monkeypatch.setattr(components, "ensure", fail)
    with pytest.raises(EnvironmentUnusable, match="kind is not on the PATH and cannot be built: build of kind failed"):
        runtime.find_kind(SILENT)


def test_a_cluster_is_created_used_and_deleted(fakes: FakePrograms) -> None:
    fakes.add("docker", "kind", "kubectl")
    facts = kind.start(
        run_id="run-1",
        lifeline_pid=os.getpid(),
        journal=SILENT,
        find_images=lambda _: ["quay.io/a@sha256:1", "vllm-stage.local/base:1", "quay.io/a@sha256:1"],
    )
    assert facts.state_dir
    name = Path(facts.state_dir).name
    assert (facts.kind, facts.owned, facts.kubernetes_version) == ("kind", True, "v1.34.0")
    assert (facts.context, facts.kubeconfig) == (f"kind-{name}", f"{facts.state_dir}/kubeconfig")
    created, loaded, nodes = fakes.calls("kind")
    assert created.startswith(f"docker create cluster --name {name} --kubeconfig {facts.kubeconfig} --config ")
    assert loaded == f"docker load image-archive {fakes.folder}/kserve.tar --name {name}"
    assert nodes == f"docker get nodes --name {name}"
    verbs = [call.split()[3 if "--namespace" in call else 2] for call in fakes.calls("kubectl")]
    assert verbs == ["apply", "get", "apply", "rollout", "apply", "version"], "types, manager, webhooks"
    assert [call for call in fakes.calls("docker") if "pull" in call] == [
        f"exec {name}-control-plane crictl pull quay.io/a@sha256:1",
        f"exec {name}-worker crictl pull quay.io/a@sha256:1",
    ]
    assert [found.name for found in kind.running()] == [name]
    assert kind.sweep(SILENT) == [], "a cluster in use is not a leftover"
    assert kind.stop(facts.state_dir, SILENT) == []
    assert fakes.calls("kind")[-1] == f"docker delete cluster --name {name}"
    assert kind.running() == []
    assert not Path(facts.state_dir).exists()


def test_images_that_a_node_has_are_not_pulled(fakes: FakePrograms) -> None:
    fakes.add("docker", "kind", "kubectl")
    (fakes.folder / "images").write_text("quay.io/a:1\nregistry.k8s.io/pause:3.10\n")
    start(find_images=lambda _: ["quay.io/a:1", "quay.io/b:1"])
    pulled = [call.split()[-1] for call in fakes.calls("docker") if "pull" in call]
    assert pulled == ["quay.io/b:1", "quay.io/b:1"], "one for each node"


def test_the_users_configuration_and_archives_go_to_kind(fakes: FakePrograms, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.add("docker", "kind", "kubectl")
    config, archives = fakes.folder / "mine.yaml", fakes.folder / "archives"
    config.write_text("kind: Cluster\n")
    archives.mkdir()
    for name in ("b.tar", "a.tar", "notes.txt"):
        (archives / name).touch()
    monkeypatch.setenv(options.CONFIG_VARIABLE, str(config))
    monkeypatch.setenv(options.IMAGES_VARIABLE, str(archives))
    start()
    created, *loaded = fakes.calls("kind")
    assert f" --config {config} " in created
    assert [Path(call.split()[3]).name for call in loaded] == ["kserve.tar", "a.tar", "b.tar"]


@pytest.mark.parametrize(
    ("variable", "problem"),
    [
        (options.CONFIG_VARIABLE, "VLLM_STAGE_KIND_CONFIG: .*missing is not a file; expected kind's cluster config"),
        (options.IMAGES_VARIABLE, "VLLM_STAGE_KIND_IMAGES: .*missing has no image archive; expected a folder with"),
    ],
)
def test_a_missing_file_of_the_user_is_reported_before_anything_is_created(
    fakes: FakePrograms, monkeypatch: pytest.MonkeyPatch, variable: str, problem: str
) -> None:
    fakes.add("docker", "kind", "kubectl")
    monkeypatch.setenv(variable, str(fakes.folder / "missing"))
    with pytest.raises(ConfigError, match=problem):
        start()
    assert fakes.calls("kind") == []


def test_a_node_that_does_not_start_leaves_its_logs(fakes: FakePrograms) -> None:
    fakes.add("docker", "kind", "kubectl")
    fakes.fail("kind-create", "ERROR: failed to create cluster: failed to init node with kubeadm")
    with pytest.raises(EnvironmentUnusable, match="failed to init node with kubeadm") as no:
        start()
    created, exported, deleted = fakes.calls("kind")
    assert created.endswith("--retain"), "a node that is removed has no logs"
    folder = Path(no.value.hint.removeprefix("read "))
    assert exported == f"docker export logs {folder} --name {folder.name}"
    assert "failed to init node" in (folder / "kind.log").read_text()
    assert deleted == f"docker delete cluster --name {folder.name}"


def test_a_node_image_that_cannot_be_pulled(fakes: FakePrograms) -> None:
    fakes.add("docker", "kind", "kubectl")
    image = "kindest/node:v1.36.1@sha256:" + "a" * 64
    fakes.fail("kind-create", f'ERROR: failed to create cluster: failed to pull image "{image}": command failed')
    with pytest.raises(
        EnvironmentUnusable, match="kind cannot create a cluster with docker: ERROR: failed to creat"
    ) as no:
        start()
    assert no.value.hint == f"docker pull {image}, or name one in VLLM_STAGE_KIND_CONFIG"
    assert fakes.calls("kind")[-1].startswith("docker delete cluster --name vllm-stage-"), "nothing of it is left"
    assert kind.running() == []


@pytest.mark.parametrize(
    ("provider", "error", "last", "hint"),
    [
        (
            "docker",
            'ERROR: failed to create cluster: command "docker run --privileged" failed with error: exit status 126\n'
            "Command Output: 5c9f\n"
            "docker: Error response from daemon: OCI runtime create failed: unable to apply caps: not permitted.\n",
            "docker: Error response from daemon: OCI runtime create failed: unable to apply caps: not permitted.",
            "this machine lacks a capability that --privileged asks for: see docs/kind.md",
        ),
        (
            "podman",
            'ERROR: failed to create cluster: running kind with rootless provider requires setting systemd property "'
            'Delegate=yes", see https://kind.sigs.k8s.io/docs/user/rootless/',
            "https://kind.sigs.k8s.io/docs/user/rootless/",
            "systemctl edit user@.service: [Service] Delegate=yes, then log in again; or run as root",
        ),
        (
            "podman",
            "ERROR: failed to create cluster: running kind with rootless provider requires cgroup v2, see https://",
            "requires cgroup v2, see https://",
            "run as root, or start this machine with cgroup v2",
        ),
    ],
)
def test_a_runtime_that_cannot_run_a_node_gets_its_own_advice(
    fakes: FakePrograms, provider: str, error: str, last: str, hint: str
) -> None:
    fakes.add(provider, "kind", "kubectl")
    fakes.fail("kind-create", error)
    with pytest.raises(EnvironmentUnusable) as no:
        start()
    assert no.value.message.startswith(f"kind cannot create a cluster with {provider}: ")
    assert no.value.message.endswith(last)
    assert no.value.hint == hint
    assert kind.running() == []


def test_a_container_that_is_being_started_is_awaited_when_kind_is_ended(tmp_path: Path) -> None:
    """`kind delete` would not find it yet, and the daemon would still finish it."""
    script, started = tmp_path / "kind", tmp_path / "started"
    script.write_text(f"#!/bin/sh\n(sleep 2; touch '{started}') > /dev/null 2>&1 &\nwait\n")
    script.chmod(0o755)
    found = runtime.ContainerRuntime("docker", "docker", str(script))
    done = found.run_kind("create", "cluster", timeout_s=1.0)
    assert (done.returncode, done.stderr) == (1, "no end within 1 s")
    assert started.exists()


def test_an_image_of_the_stage_that_cannot_be_pulled(fakes: FakePrograms) -> None:
    fakes.add("docker", "kind", "kubectl")
    fakes.fail("docker-exec", "E1126 remote_image.go\nFATAL pulling image: 403 Forbidden")
    with pytest.raises(
        EnvironmentUnusable, match=r"image quay.io/a:1 cannot be pulled in kind's node: .*403 Forb"
    ) as no:
        start(find_images=lambda _: ["quay.io/a:1"])
    assert no.value.hint.startswith("docker pull quay.io/a:1")
    assert kind.running() == []


def test_a_manager_that_does_not_start_ends_the_cluster(fakes: FakePrograms) -> None:
    fakes.add("docker", "kind", "kubectl")
    fakes.fail("kubectl", "error: timed out waiting for the condition")
    with pytest.raises(
        EnvironmentUnusable, match=r"kind cluster vllm-stage-\w+: kubectl apply: error: timed out"
    ) as no:
        start()
    assert no.value.hint.startswith("read ")
    assert [call.split()[1] for call in fakes.calls("kind")] == ["create", "load", "export", "delete"]
    assert kind.running() == []


def test_the_pods_that_keep_kserve_from_starting_are_named(fakes: FakePrograms) -> None:
    fakes.add("docker", "kind", "kubectl")
    fakes.fail("kubectl-rollout", "error: timed out waiting for the condition")
    (fakes.folder / "pods").write_text(
        "kserve kserve-controller-manager-1 0/1 Running 1 (2s ago) 34s\n"
        "kube-system coredns-1 0/1 Pending 0 84s\n"
        "kube-system kube-proxy-1 1/1 Running 0 85s\n"
    )
    with pytest.raises(EnvironmentUnusable) as no:
        start()
    assert no.value.message.endswith(
        "kubectl rollout status deployment/kserve-controller-manager: error: timed out waiting for the condition; "
        "pods that are not ready: kserve/kserve-controller-manager-1 0/1 Running, kube-system/coredns-1 0/1 Pending"
    )
    assert kind.running() == []


def leave_behind(*, kept: bool = False) -> record.KindRecord:
    """The record of a run whose process has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as ended:
        lifeline = ProcessRef.of(ended.pid)
        assert lifeline
        assert ended.stdin
        ended.stdin.close()
    left = record.KindRecord(record.new_name(), "run-0", "podman", lifeline, kept)
    left.save()
    return left


def test_the_cluster_of_a_killed_run_is_deleted_by_the_next_one(fakes: FakePrograms) -> None:
    fakes.add("docker", "podman", "kind")
    left, kept = leave_behind(), leave_behind(kept=True)
    assert kind.sweep(SILENT) == [f"kind cluster {left.name} of run run-0"]
    assert fakes.calls("kind") == [f"podman delete cluster --name {left.name}"], (
        "by the runtime that it was created with"
    )
    assert [found.name for found in kind.running()] == [kept.name]


def test_a_leftover_that_cannot_be_deleted_is_not_forgotten(fakes: FakePrograms) -> None:
    fakes.add("podman", "kind")
    left = leave_behind()
    fakes.fail("kind-delete", "ERROR: failed to delete cluster: device is busy")
    with pytest.raises(EnvironmentUnusable, match=f"cluster {left.name} of run run-0: ERROR: failed to delete") as no:
        kind.sweep(SILENT)
    assert len(fakes.calls("kind")) == 2, "tried twice"
    assert no.value.hint == f"kind delete cluster --name {left.name}"
    (fakes.folder / "kind-delete").unlink()
    assert len(kind.sweep(SILENT)) == 1


def test_a_kept_cluster_is_stopped_by_its_name(fakes: FakePrograms, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.add("docker", "kind", "kubectl")
    facts = kind.start(run_id="run-1", lifeline_pid=os.getpid(), journal=SILENT)
    kind.keep(facts)
    (found,) = kind.running()
    assert found.kept
    assert program.main(["list"]) == 0
    assert capsys.readouterr().out == f"{found.name} of run run-1: {facts.kubeconfig}\n"
    assert program.main(["stop", "another"]) == 1
    assert program.main(["stop", found.name]) == 0
    assert kind.running() == []
    with pytest.raises(EnvironmentUnusable, match="it has been removed"):
        kind.keep(facts)


def test_kserves_manager_runs_from_the_loaded_image_with_its_own_certificate(tmp_path: Path) -> None:
    write_kserve_files(tmp_path)
    made = kserve.build_manager_manifests(tmp_path, b"certificate", b"key")
    assert [item["kind"] for item in made] == ["Namespace", "ConfigMap", "Secret", "ClusterRoleBinding", "Deployment"]
    assert base64.b64decode(made[2]["data"]["tls.crt"]) == b"certificate"
    assert made[3]["subjects"][0]["namespace"] == "kserve"
    template = made[4]["spec"]["template"]["spec"]
    assert template["containers"][0]["image"] == kserve.IMAGE
    assert template["securityContext"] == {"runAsNonRoot": True, "runAsUser": 65532}
    (hooks,) = kserve.build_webhooks(tmp_path, b"authority")
    assert len(hooks["webhooks"]) == 2
    assert hooks["webhooks"][1]["clientConfig"] == {
        "service": {"name": "kserve-webhook-server-service", "namespace": "kserve", "path": "/validate"},
        "caBundle": base64.b64encode(b"authority").decode(),
    }


def test_a_certificate_names_the_hosts_of_the_webhooks(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl")
    made = pki.create_server_certificate(tmp_path / "pki", kserve.WEBHOOK_HOSTS)
    verify = [openssl, "verify", "-CAfile", made.certificate("ca"), "-verify_hostname", kserve.WEBHOOK_HOSTS[0]]
    assert subprocess.run([*verify, made.certificate("server")], capture_output=True, check=False).returncode == 0


def test_a_record_that_cannot_be_read_is_not_a_cluster(fakes: FakePrograms) -> None:
    folder = record.clusters_dir() / "vllm-stage-abc123"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{")
    assert kind.running() == []
    assert lifecycle.stop(folder, SILENT) == []
