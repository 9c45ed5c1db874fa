"""The certificate authorities that a cluster publishes for its clients, for ``--stage-ca-file=cluster``."""

from __future__ import annotations

import json
import shlex
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.cluster import client
from pytest_vllm_stage.cluster.api_errors import ApiServerUnreachable, RequestRejected, translate_api_errors
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.certificates import split_pem
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.files import write_atomically
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.run.context import Run

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

#: The system's authorities and the cluster's, in the run directory.
BUNDLE = "trusted-authorities.pem"


@dataclass(frozen=True)
class AuthoritySource:
    """A ConfigMap that holds authorities.

    Attributes:
        namespace: Its namespace.
        name: Its name.
        key: The key with the PEM text.
    """

    namespace: str
    name: str
    key: str

    def __str__(self) -> str:
        return f"configmap {self.namespace}/{self.name} (key {self.key})"


@dataclass
class Collected:
    """What was found in a cluster: the PEM blocks of each source, and why others gave none."""

    found: dict[AuthoritySource, list[bytes]] = field(default_factory=dict)
    refused: dict[AuthoritySource, str] = field(default_factory=dict)


def find_ca_file(run: Run, cluster: ClusterFacts) -> str | None:
    """The PEM file of the authorities that the run trusts; None for the system's.

    Raises:
        EnvironmentUnusable: the cluster's are to be trusted, and it publishes none that this user may read.
    """
    if not run.config.trusts_cluster:
        return run.config.ca_file
    return str(json.loads(run.shared.ensure("authorities", lambda: json.dumps(_make_bundle(run, cluster))))["file"])


def _make_bundle(run: Run, cluster: ClusterFacts) -> Mapping[str, Any]:
    kube = client.connect_to(cluster)
    try:
        collected = collect_authorities(kube, run.config.namespace)
    finally:
        kube.client.close()
    path = run.directory / BUNDLE
    own = [block for blocks in collected.found.values() for block in blocks]
    write_atomically(path, b"\n".join(dict.fromkeys([*read_system_authorities(), *own])) + b"\n")
    facts = {
        "file": str(path),
        "sources": [str(source) for source in collected.found],
        "refused": [f"{source}: {why}" for source, why in collected.refused.items()],
    }
    run.journal.event("authorities", run.config.namespace, **facts)
    return facts


def collect_authorities(kube: DynamicClient, namespace: str) -> Collected:
    """The authorities that sign what clients of a namespace's Services and Routes are shown.

    Those of the ingress come first; the namespace's ``kube-root-ca.crt``, which every cluster publishes, where there
    are none. The authority of OpenShift's serving certificates signs what answers inside the cluster.

    Raises:
        EnvironmentUnusable: there are none, or this user may not read them; names each place, and the missing right.
    """
    ingress = AuthoritySource("openshift-config-managed", "default-ingress-cert", "ca-bundle.crt")
    root = AuthoritySource(namespace, "kube-root-ca.crt", "ca.crt")
    services = AuthoritySource(namespace, "openshift-service-ca.crt", "service-ca.crt")
    collected = Collected()
    _collect(kube, ingress, collected)
    if ingress not in collected.found:
        _collect(kube, root, collected)
    if not collected.found:
        role = shlex.quote(str(fixtures_dir() / "access" / "trust" / "authorities.yaml"))
        raise EnvironmentUnusable(
            "--stage-ca-file=cluster: the cluster publishes no authority that this user can read: "
            + "; ".join(f"{source}: {why}" for source, why in collected.refused.items()),
            hint=f"an administrator runs: kubectl apply -f {role}; or name a PEM file: --stage-ca-file=FILE",
        )
    _collect(kube, services, collected)
    return collected


def _collect(kube: DynamicClient, source: AuthoritySource, collected: Collected) -> None:
    try:
        blocks = split_pem(_read(kube, source).encode())
    except ApiServerUnreachable:
        raise
    except RequestRejected as error:
        collected.refused[source] = "does not exist" if error.code == 404 else error.message
    except EnvironmentUnusable:
        collected.refused[source] = f"missing right: get configmaps in namespace {source.namespace}"
    else:
        if blocks:
            collected.found[source] = blocks
        else:
            collected.refused[source] = "holds no certificate"


def _read(kube: DynamicClient, source: AuthoritySource) -> str:
    path = f"/api/v1/namespaces/{source.namespace}/configmaps/{source.name}"
    with translate_api_errors(f"get configmap/{source.name}"):
        response = kube.request("get", path, serialize=False)
        return str((json.loads(response.data).get("data") or {}).get(source.key) or "")


def read_system_authorities() -> list[bytes]:
    """The PEM blocks of the authorities that OpenSSL trusts on this machine."""
    return list(dict.fromkeys(block for path in _system_files() for block in split_pem(path.read_bytes())))


def _system_files() -> Iterator[Path]:
    known = ssl.get_default_verify_paths()
    if known.cafile:
        yield Path(known.cafile)
    elif known.capath:
        yield from (path for path in sorted(Path(known.capath).iterdir()) if path.is_file())
