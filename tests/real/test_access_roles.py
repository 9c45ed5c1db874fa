"""The Roles of fixtures/access on a real cluster: each mode has what it needs, and a verb that it lacks is named."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from pytest_vllm_stage.cluster import access, client
from pytest_vllm_stage.cluster.access import Right, RoleManifest
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.settings.disruptions import DISRUPTIONS
from tests.real.live_stage import SILENT, run_kubectl
from tests.real.lookalike.validator import ACCESS, write_kubeconfig

pytestmark = pytest.mark.real

MANUAL = Path(__file__).parents[2] / "docs" / "access.md"
OVERLAY = re.compile(r"<!-- overlay: another namespace -->\n```yaml\n(?P<yaml>.*?)```", re.DOTALL)
VALIDATOR, DEPLOYER = "vllm-stage-validator", "vllm-stage-deployer"
#: An administrator's overlay gives the folders another namespace than the one that they name.
NAMESPACE = "roles-of-{}"


class Mode(NamedTuple):
    """How a mode's user comes to its rights.

    Attributes:
        folders: What an administrator applies, together.
        account: The ServiceAccount that is bound.
        removed: A right whose lack must be named, of a Role that a run needs. Optional Roles lose it too.
    """

    folders: tuple[str, ...]
    account: str
    removed: Right


MODES = {
    "read-only": Mode(("read-only",), VALIDATOR, Right("list", "pods", "")),
    "load": Mode(("read-only", "load"), VALIDATOR, Right("create", "jobs", "batch")),
    "publish": Mode(("read-only", "publish"), VALIDATOR, Right("get", "secrets", "", "minio-credentials")),
    "deploy": Mode(("deploy",), DEPLOYER, Right("delete", "namespaces", "")),
    "disrupt": Mode(("deploy", "disrupt"), DEPLOYER, Right("create", "pods/eviction", "")),
}


class Bound(NamedTuple):
    """A ServiceAccount with the rights of a mode.

    Attributes:
        cluster: Where.
        namespace: Its namespace.
        kubeconfig: Its file.
    """

    cluster: ClusterFacts
    namespace: str
    kubeconfig: Path

    def find_missing(self, mode: str) -> tuple[str, list[str]]:
        """Why a run of a mode is refused, empty where it is not; and the lines about optional rights."""
        lines: list[str] = []
        with client.connection(str(self.kubeconfig), self.cluster.context) as kube:
            try:
                access.check_access(kube, mode, self.namespace, Journal(say=lines.append), DISRUPTIONS)
            except EnvironmentUnusable as error:
                return str(error), lines
        return "", lines


@contextmanager
def bind(cluster: ClusterFacts, name: str, mode: Mode, folder: Path) -> Iterator[Bound]:
    """Apply a mode's folders by the manual's overlay for another namespace."""
    namespace = NAMESPACE.format(name)
    overlay = yaml.safe_load(OVERLAY.search(MANUAL.read_text(encoding="utf-8"))["yaml"])  # type: ignore[index]
    overlay["resources"] = [os.path.relpath(ACCESS / one, folder) for one in mode.folders]
    overlay["transformers"] = [text.replace("my-stage", namespace) for text in overlay["transformers"]]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    run_kubectl(cluster, "default", "create", "namespace", namespace)
    run_kubectl(cluster, namespace, "apply", "-k", str(folder))
    try:
        kubeconfig = write_kubeconfig(cluster, namespace, mode.account, folder / "kubeconfig").kubeconfig
        yield Bound(cluster, namespace, kubeconfig)
    finally:
        run_kubectl(cluster, namespace, "delete", "-k", str(folder), "--wait=false", "--ignore-not-found")
        run_kubectl(cluster, "default", "delete", "namespace", namespace, "--wait=false", "--ignore-not-found")


def remove_verb(bound: Bound, role: RoleManifest, right: Right) -> None:
    """Take a verb on a resource away from a live Role that grants it."""
    kind = f"{role.kind.lower()}/{role.name}"
    found = json.loads(run_kubectl(bound.cluster, bound.namespace, "get", kind, "-o", "json"))
    for rule in found["rules"]:
        if right.resource in rule["resources"]:
            rule["resources"].remove(right.resource)
            rest = {**rule, "resources": [right.resource], "verbs": [v for v in rule["verbs"] if v != right.verb]}
    # The API server refuses a rule without resources or verbs.
    found["rules"] = [one for one in [*found["rules"], rest] if one["resources"] and one["verbs"]]
    run_kubectl(bound.cluster, bound.namespace, "replace", "-f", "-", manifest=json.dumps(found))


def require(what: str, bound: Bound, mode: str, expected: str) -> None:
    """Await what a run says of its rights: a change of a Role is in force a moment later."""

    def observe() -> Observation:
        refused, lines = bound.find_missing(mode)
        seen = refused or " ".join(lines)
        return Observation(expected in seen if expected else not seen, seen)

    wait_until(what, observe, timeout_s=180, journal=SILENT, error=EnvironmentUnusable)


def find_roles_granting(mode: Mode) -> list[RoleManifest]:
    """The Roles that grant the right which is removed, in whatever folder and for objects of whatever name."""
    roles = [role for folder in mode.folders for role in access.load_roles(folder)]
    granting = {mode.removed, dataclasses.replace(mode.removed, name="")}
    return [role for role in roles if not granting.isdisjoint(role.rights)]


@pytest.mark.parametrize("name", MODES)
def test_roles_of_a_mode_are_enough_and_a_missing_verb_is_named(
    name: str, simulated_cluster: ClusterFacts, tmp_path: Path
) -> None:
    mode = MODES[name]
    (role,) = [one for one in access.load_roles(name) if not one.without and mode.removed in one.rights]
    with bind(simulated_cluster, name, mode, tmp_path) as bound:
        require("the rights of the mode", bound, name, "")
        for one in find_roles_granting(mode):
            remove_verb(bound, one, mode.removed)
        user = f"system:serviceaccount:{bound.namespace}:{mode.account}"
        right = f"{mode.removed.verb} {mode.removed.resource_and_group}"
        require("the missing right", bound, name, f"{user} may not {right} in namespace {bound.namespace}, which a run")
        refused, _ = bound.find_missing(name)
        assert f"{role.kind} {role.name} ({role.path}) grants it" in refused
