"""A ServiceAccount with exactly the rights of fixtures/access, or with one of them missing, and its kubeconfig."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.paths import fixtures_dir
from tests.real.live_stage import run_kubectl

Object = dict[str, Any]
ACCOUNT = "vllm-stage-validator"
ACCESS = fixtures_dir() / "access"
#: What an administrator applies in addition to the folder ``read-only`` for a stage whose models need a token and
#: whose registry is the platform's.
FILES = ("trust/authorities.yaml", "trust/tokens.yaml", "reach/registry.yaml")
#: What the manifests name in the place of the stage's own, which an administrator replaces.
_NAMESPACE, _TOKENS = "vllm-stage", "serviceaccounts/token"
TOKEN_S = 3600


class Validator(NamedTuple):
    """A user of the cluster.

    Attributes:
        kubeconfig: Its file, which holds the token.
        token: The ServiceAccount's.
    """

    kubeconfig: Path
    token: str


class MissingRight(NamedTuple):
    """A verb on a resource that a Role lacks."""

    role: str
    resource: str
    verb: str


def create_validator(
    cluster: ClusterFacts,
    namespace: str,
    models: Sequence[str],
    folder: Path,
    account: str = ACCOUNT,
    missing: MissingRight | None = None,
) -> Validator:
    """Create the ServiceAccount, its Roles and its kubeconfig.

    Args:
        cluster: Where.
        namespace: The stage's.
        models: The ServiceAccounts of models, whose tokens may be requested.
        folder: For the kubeconfig.
        account: The ServiceAccount's name; each has Roles of its own.
        missing: What its Roles lack.
    """
    rendered = run_kubectl(cluster, namespace, "kustomize", str(ACCESS / "read-only"))
    texts = [rendered, *((ACCESS / name).read_text(encoding="utf-8") for name in FILES)]
    manifests = [_for_stage(one, namespace, models) for text in texts for one in yaml.safe_load_all(text)]
    if missing:
        _remove(manifests, missing)
    if account != ACCOUNT:
        manifests = [_rename(one, account) for one in manifests]
    for place in {one["metadata"].get("namespace", "default") for one in manifests}:
        there = [one for one in manifests if one["metadata"].get("namespace", "default") == place]
        run_kubectl(cluster, place, "apply", "-f", "-", manifest=yaml.dump_all(there))
    return write_kubeconfig(cluster, namespace, account, folder / f"{account}.kubeconfig")


def _for_stage(manifest: Object, namespace: str, models: Sequence[str]) -> Object:
    changed = copy.deepcopy(manifest)
    for place in (changed["metadata"], *(changed.get("subjects") or [])):
        if place.get("namespace") == _NAMESPACE:
            place["namespace"] = namespace
    for rule in changed.get("rules") or []:
        if rule["resources"] == [_TOKENS]:
            rule["resourceNames"] = list(models)
    return changed


def _remove(manifests: Sequence[Object], missing: MissingRight) -> None:
    """Take a verb away; the rule must be about its resource alone."""
    (role,) = [one for one in manifests if one["kind"] == "Role" and one["metadata"]["name"] == missing.role]
    (rule,) = [rule for rule in role["rules"] if rule["resources"] == [missing.resource]]
    assert missing.verb in rule["verbs"]
    # The API server refuses a rule without verbs; this one allows nothing that a run does.
    rule["verbs"] = [verb for verb in rule["verbs"] if verb != missing.verb] or ["deletecollection"]


def _rename(manifest: Object, account: str) -> Object:
    """The manifest for another ServiceAccount."""
    changed = copy.deepcopy(manifest)
    is_account = changed["kind"] == "ServiceAccount"
    changed["metadata"]["name"] = account if is_account else f"{changed['metadata']['name']}-{account}"
    if "roleRef" in changed:
        changed["roleRef"]["name"] += f"-{account}"
    for subject in changed.get("subjects") or []:
        subject["name"] = account
    return changed


def write_kubeconfig(cluster: ClusterFacts, namespace: str, account: str, path: Path) -> Validator:
    """A ServiceAccount that exists, with a token and a kubeconfig for it."""
    token = run_kubectl(cluster, namespace, "create", "token", account, f"--duration={TOKEN_S}s").strip()
    config = yaml.safe_load(Path(cluster.kubeconfig).read_text(encoding="utf-8"))
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    path.touch(0o600)
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return Validator(path, token)
