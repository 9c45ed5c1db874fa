"""The fields of a kubeconfig's cluster or user: those that kubectl refuses are named here, never with their value.

The client's loader sends whatever a field holds, a mapping in place of a token too, and passes over what it does not
know, so that a request would be another user's than kubectl's.
"""

from __future__ import annotations

import base64
import importlib.util
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pytest_vllm_stage.core.errors import ConfigError

Fields = Mapping[str, Any]
#: What an HTTP header can carry.
_TOKEN = re.compile(r"[!-~]*")
_TEXTS = ("token", "tokenFile", "username", "password", "tls-server-name", "proxy-url", "certificate-authority")
_TEXTS_OF_KEYS = ("client-certificate", "client-key")
_DATA = tuple(f"{name}-data" for name in ("certificate-authority", *_TEXTS_OF_KEYS))
#: Field of a cluster or a user to its type.
_KINDS: Mapping[str, type] = dict.fromkeys((*_TEXTS, *_TEXTS_OF_KEYS, *_DATA, "as", "as-uid"), str) | {
    "insecure-skip-tls-verify": bool,
    "as-groups": list,
    "as-user-extra": dict,
    "exec": dict,
    "auth-provider": dict,
}
_PROXIES = ("http", "https", "socks5")
#: https://github.com/kubernetes/kubernetes/blob/v1.34.4/staging/src/k8s.io/client-go/plugin/pkg/client/auth/plugins.go
_REMOVED_PROVIDERS = ("gcp", "azure", "openstack")


def check_cluster(cluster: Fields, where: str) -> None:
    """Refuse a cluster that kubectl refuses.

    Raises:
        ConfigError: names the field.
    """
    _check_types(cluster, where)
    if cluster.get("certificate-authority") and cluster.get("certificate-authority-data"):
        raise ConfigError(f"{where}: certificate-authority and certificate-authority-data: expected one, got both")
    if cluster.get("insecure-skip-tls-verify"):
        given = [name for name in ("certificate-authority", "certificate-authority-data") if cluster.get(name)]
        if given:
            raise ConfigError(f"{where}: insecure-skip-tls-verify and {given[0]}: expected one, got both")
    _check_proxy(str(cluster.get("proxy-url") or ""), where)


def check_user(user: Fields, where: str) -> None:
    """Refuse a user that kubectl refuses, or that the client's loader would misread.

    Raises:
        ConfigError: names the field.
    """
    _check_types(user, where)
    check_token(user.get("token") or "", f"{where}: token")
    if user.get("token") and user.get("username"):
        raise ConfigError(f"{where}: token and username: expected one, got both")
    certificate, key = ([f for f in (name, f"{name}-data") if user.get(f)] for name in _TEXTS_OF_KEYS)
    if certificate and not key:
        raise ConfigError(f"{where}: {certificate[0]}: expected client-key or client-key-data with it, got neither")
    provider = str((user.get("auth-provider") or {}).get("name", ""))
    if provider in _REMOVED_PROVIDERS:
        raise ConfigError(f"{where}: auth-provider {provider}: Kubernetes has removed it; use its exec plugin")
    if not user.get("as"):
        for name in ("as-uid", "as-groups", "as-user-extra"):
            if user.get(name):
                raise ConfigError(f"{where}: {name}: expected a user in `as` with it, got none")


def check_token(token: str, where: str) -> str:
    """The token, if a header can carry it.

    Raises:
        ConfigError: it cannot; its value is not shown.
    """
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{where}: expected visible ASCII characters only (it is not shown)")
    return token


def impersonation_headers(user: Fields) -> tuple[tuple[str, str], ...]:
    """The headers of a user that acts as another; a group is a header of its own, as kubectl sends them."""
    if not user.get("as"):
        return ()
    found = [("Impersonate-User", str(user["as"]))]
    found += [("Impersonate-Uid", str(user["as-uid"]))] if user.get("as-uid") else []
    found += [("Impersonate-Group", str(group)) for group in user.get("as-groups") or []]
    for name, values in (user.get("as-user-extra") or {}).items():
        found += [(f"Impersonate-Extra-{name}", str(value)) for value in values or []]
    return tuple(found)


def _check_types(fields: Fields, where: str) -> None:
    for name, kind in _KINDS.items():
        value = fields.get(name)
        if value is not None and not isinstance(value, kind):
            raise ConfigError(f"{where}: {name}: expected {kind.__name__}, got {type(value).__name__}")
    for name in _DATA:
        try:
            base64.b64decode("".join((fields.get(name) or "").split()), validate=True)
        except ValueError:  # binascii's error is one
            raise ConfigError(f"{where}: {name}: expected base64 (it is not shown)") from None


def _check_proxy(url: str, where: str) -> None:
    if not url:
        return
    parts = urlsplit(url)
    if parts.scheme not in _PROXIES or not parts.hostname:
        scheme = f"scheme {parts.scheme!r}" if parts.hostname else "no host"
        raise ConfigError(f"{where}: proxy-url: expected an http, https or socks5 URL, got one with {scheme}")
    if parts.scheme == "socks5" and importlib.util.find_spec("socks") is None:
        raise ConfigError(
            f"{where}: proxy-url: the Kubernetes client needs the package PySocks for a socks5 proxy",
            hint="pip install PySocks",
        )
