"""kube-rbac-proxy in front of a server, with TLS and set up as Open Data Hub does it with the proxies of its models.

It asks the cluster's API server for a TokenReview, then for a SubjectAccessReview. Open Data Hub's build asks whether
the token's user may ``get`` the object; this one, as it is released, whether he may do what the request's method
stands for: POST is ``create``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from pytest_vllm_stage.cluster.local import components
from tests.real.live_stage import SILENT
from tests.real.lookalike.listener import await_listener
from tests.real.servers import run_process

PORT, HEALTH_PORT = 8443, 8643
#: For how long it trusts the reviews of a token, and of a user who is allowed and who is refused.
TOKEN_CACHED_S, ALLOWED_CACHED_S, REFUSED_CACHED_S = 120, 300, 30


@dataclass(frozen=True)
class GuardedObject:
    """The object that a user must have access to.

    Attributes:
        group: Its API group; empty for the core one.
        resource: Its plural.
        namespace: Its namespace.
        name: Its name.
    """

    group: str
    resource: str
    namespace: str
    name: str

    def write_configuration(self, path: Path) -> None:
        """Write the configuration file of the proxy."""
        attributes = {"apiGroup": self.group, "resource": self.resource, "namespace": self.namespace, "name": self.name}
        path.write_text(yaml.safe_dump({"authorization": {"resourceAttributes": attributes}}))


@dataclass(frozen=True)
class RbacProxy:
    """One proxy.

    Attributes:
        name: Names its files.
        address: The loopback address that it listens on.
        certificate: PEM file with its certificate and key.
        upstream: Address and port of the server behind it.
        guarded: What a user must have access to.
    """

    name: str
    address: str
    certificate: Path
    upstream: str
    guarded: GuardedObject


@contextmanager
def run_rbac_proxy(proxy: RbacProxy, kubeconfig: Path, folder: Path) -> Iterator[str]:
    """Run it until the end of the block; gives its address and port.

    Args:
        proxy: The proxy.
        kubeconfig: Of a user who may create reviews.
        folder: For its files.
    """
    program = components.ensure(SILENT, ["kube-rbac-proxy"])["kube-rbac-proxy"]
    configuration, log = folder / f"{proxy.name}.yaml", folder / f"{proxy.name}.log"
    proxy.guarded.write_configuration(configuration)
    command = [
        str(program),
        f"--secure-listen-address={proxy.address}:{PORT}",
        f"--proxy-endpoints-port={HEALTH_PORT}",
        f"--upstream=http://{proxy.upstream}",
        "--auth-header-fields-enabled=true",
        f"--tls-cert-file={proxy.certificate}",
        f"--tls-private-key-file={proxy.certificate}",
        f"--config-file={configuration}",
        f"--kubeconfig={kubeconfig}",
    ]
    with run_process(command, None, log) as process:
        await_listener(f"kube-rbac-proxy {proxy.name}", process, (proxy.address, PORT), log)
        yield f"{proxy.address}:{PORT}"
