"""The cluster's certificates: one authority per cluster, made by ``openssl`` and removed with its folder."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pytest_vllm_stage.cluster.local.network import Addresses
from pytest_vllm_stage.core.errors import EnvironmentUnusable

NODE_NAME = "vllm-stage"
_DAYS = "30"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Pki:
    """The paths of a cluster's certificates and keys.

    Attributes:
        folder: Readable by its owner only.
    """

    folder: Path

    def certificate(self, name: str) -> str:
        """Path of a certificate; ``ca``, ``apiserver``, ``kubelet``, ``admin`` or ``kserve``."""
        return str(self.folder / f"{name}.crt")

    def key(self, name: str) -> str:
        """Path of the key of `certificate`, or ``service-account``."""
        return str(self.folder / f"{name}.key")

    @property
    def service_account_public(self) -> str:
        """Path of the public key that checks ServiceAccount tokens."""
        return str(self.folder / "service-account.pub")


def create(folder: Path, addresses: Addresses) -> Pki:
    """Create the authority and every certificate of the cluster."""
    folder.mkdir(mode=0o700, parents=True)
    pki = Pki(folder)
    _openssl("req", "-x509", *_NEW_KEY, "-days", _DAYS, "-subj", "/CN=vllm-stage-ca", *_out(pki, "ca"))
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    server = [*(f"DNS:{name}" for name in [*names, "localhost"]), "IP:127.0.0.1"]
    _sign(
        pki, "apiserver", "/CN=kube-apiserver", [*server, f"IP:{addresses.node}", f"IP:{addresses.kubernetes_service}"]
    )
    _sign(pki, "kubelet", f"/O=system:nodes/CN=system:node:{NODE_NAME}", [f"DNS:{NODE_NAME}", f"IP:{addresses.node}"])
    _sign(pki, "kserve", "/CN=kserve-webhook", [f"IP:{addresses.node}"])
    _sign(pki, "admin", "/O=system:masters/CN=vllm-stage-admin", [])
    _openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", pki.key("service-account"))
    _openssl("pkey", "-in", pki.key("service-account"), "-pubout", "-out", pki.service_account_public)
    return pki


def create_server_certificate(folder: Path, hosts: Iterable[str]) -> Pki:
    """Create an authority and the certificate ``server`` of the hosts, whose name is the first."""
    folder.mkdir(mode=0o700, parents=True)
    pki, names = Pki(folder), list(hosts)
    _openssl("req", "-x509", *_NEW_KEY, "-days", _DAYS, "-subj", "/CN=vllm-stage-ca", *_out(pki, "ca"))
    _sign(pki, "server", f"/CN={names[0]}", [f"DNS:{name}" for name in names])
    return pki


def _sign(pki: Pki, name: str, subject: str, alternatives: list[str]) -> None:
    extensions = ["-addext", "extendedKeyUsage=serverAuth,clientAuth", "-addext", "basicConstraints=critical,CA:FALSE"]
    if alternatives:
        extensions += ["-addext", f"subjectAltName={','.join(alternatives)}"]
    authority = ("-CA", pki.certificate("ca"), "-CAkey", pki.key("ca"))
    _openssl("req", "-x509", *authority, *_NEW_KEY, "-days", _DAYS, "-subj", subject, *extensions, *_out(pki, name))


def _out(pki: Pki, name: str) -> tuple[str, ...]:
    return ("-keyout", pki.key(name), "-out", pki.certificate(name))


def _openssl(*arguments: str) -> None:
    result = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise EnvironmentUnusable(f"openssl {arguments[0]}: {result.stderr.strip()[-500:]}", hint="openssl 3 is needed")
