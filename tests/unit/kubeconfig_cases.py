"""Fields of a kubeconfig that kubectl refuses, with its words and ours; tests/real asks kubectl itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

GROUP = "client.authentication.k8s.io"
EXEC: dict[str, Any] = {
    "command": "echo",
    "args": ["hello"],
    "apiVersion": f"{GROUP}/v1",
    "interactiveMode": "Never",
}


class Refused(NamedTuple):
    """A kubeconfig with one mistake.

    Attributes:
        ours: What the run reports.
        kubectls: What kubectl reports.
        cluster: Fields of the cluster.
        user: Fields of the user.
    """

    ours: str
    kubectls: str
    cluster: Mapping[str, Any] = MappingProxyType({})
    user: Mapping[str, Any] = MappingProxyType({})


def with_plugin(**fields: Any) -> dict[str, Any]:
    return {"exec": {name: value for name, value in {**EXEC, **fields}.items() if value is not None}}


def answer(version: str, **fields: Any) -> str:
    return json.dumps({"kind": "ExecCredential", "apiVersion": f"{GROUP}/{version}", **fields})


REFUSED = {
    "two authorities": Refused(
        "certificate-authority and certificate-authority-data: expected one, got both",
        "certificate-authority-data and certificate-authority are both specified",
        {"certificate-authority": "kc", "certificate-authority-data": "eA=="},
    ),
    "no base64": Refused(
        "certificate-authority-data: expected base64", "illegal base64 data", {"certificate-authority-data": "!!"}
    ),
    "scheme of the proxy": Refused(
        "proxy-url: expected an http, https or socks5 URL, got one with scheme 'ftp'",
        'unsupported scheme "ftp"',
        {"proxy-url": "ftp://proxy:3128"},
    ),
    "no scheme of the proxy": Refused(
        "proxy-url: expected an http, https or socks5 URL, got one with no host",
        "could not parse: 127.0.0.1:3128",
        {"proxy-url": "127.0.0.1:3128"},
    ),
    "certificate without a key": Refused(
        "client-certificate-data: expected client-key or client-key-data with it, got neither",
        "client-key-data or client-key must be specified",
        user={"client-certificate-data": "eA=="},
    ),
    "two ways to log in": Refused(
        "token and username: expected one, got both",
        "more than one authentication method found",
        user={"token": "t", "username": "u", "password": "p"},
    ),
    "token file": Refused(
        "tokenFile .*/absent cannot be read: No such file", "absent: no such file", user={"tokenFile": "absent"}
    ),
    "groups without a user": Refused(
        "as-groups: expected a user in `as` with it, got none",
        "requesting uid, groups or user-extra",
        user={"as-groups": ["a"]},
    ),
    "removed provider": Refused(
        "auth-provider gcp: Kubernetes has removed it", "gcp auth plugin", user={"auth-provider": {"name": "gcp"}}
    ),
    "type of a token": Refused("token: expected str, got int", "cannot unmarshal number", user={"token": 7}),
    "no command": Refused(
        "exec: command: expected a program, got none", "command must be specified", user=with_plugin(command=None)
    ),
    "old version": Refused(
        "exec: apiVersion: expected .*/v1 or .*/v1beta1, got client.authentication.k8s.io/v1alpha1",
        f'invalid apiVersion "{GROUP}/v1alpha1"',
        user=with_plugin(apiVersion=f"{GROUP}/v1alpha1"),
    ),
    "no interactive mode": Refused(
        "exec: interactiveMode: expected Never, IfAvailable, Always, got none",
        "interactiveMode must be specified",
        user=with_plugin(interactiveMode=None),
    ),
    "terminal": Refused(
        "interactiveMode Always: a test run has no terminal",
        "standard input is not a terminal",
        user=with_plugin(interactiveMode="Always"),
    ),
    "variable without a name": Refused(
        "exec: env: expected a list of name and value",
        "env variable name must be specified",
        user=with_plugin(env=[{"value": "v"}]),
    ),
    "no program": Refused(
        "credential plugin failed: no-such-plugin does not exist .*\n.*next: install it",
        "install it",
        user=with_plugin(command="no-such-plugin", installHint="install it"),
    ),
    "failing program": Refused(
        "credential plugin failed: .*false ended with exit code 1",
        "failed with exit code 1",
        user=with_plugin(command="false"),
    ),
    "no JSON": Refused(
        "expected an ExecCredential as JSON, got 6 other characters", "decoding stdout", user=with_plugin()
    ),
    "no status": Refused(
        "its ExecCredential has no status",
        "didn't return a status field",
        user=with_plugin(args=[answer("v1")]),
    ),
    "empty status": Refused(
        "its status has neither a token nor a client certificate",
        "didn't return a token or cert/key pair",
        user=with_plugin(args=[answer("v1", status={})]),
    ),
    "another version": Refused(
        "expected apiVersion client.authentication.k8s.io/v1, as the kubeconfig has it, got .*/v1beta1",
        "plugin returned version client.authentication.k8s.io/v1beta1",
        user=with_plugin(args=[answer("v1beta1", status={"token": "t"})]),
    ),
}


def made_kubeconfig(case: Refused) -> dict[str, Any]:
    """The case's kubeconfig, with context ``ctx`` of a server that does not answer."""
    return {
        "contexts": [{"name": "ctx", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1", **case.cluster}}],
        "users": [{"name": "u", "user": dict(case.user)}],
    }
