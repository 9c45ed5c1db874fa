"""Compares what this user may do with the Roles under ``fixtures/access``, before a run uses an existing cluster.

The Roles are the only list of rights: what an administrator applies is what is checked. A Role with the annotation
`WITHOUT` is optional, and the annotation says what a run does not check without it. One with the annotation
`DISRUPTIONS` is needed only by runs that carry out a disruption which it names.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pytest_vllm_stage.cluster.api_errors import ApiServerUnreachable, RequestRejected, translate_api_errors
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import fixtures_dir

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

WITHOUT = "vllm-stage/without"
DISRUPTIONS = "vllm-stage/disruptions"
_SERVICE_ACCOUNT = "system:serviceaccount:"
_REVIEWS = "/apis/authorization.k8s.io/v1"


@dataclass(frozen=True)
class Right:
    """One verb on one resource.

    Attributes:
        verb: For example ``list``.
        resource: Its plural, with the subresource: ``pods/log``.
        group: Its API group; empty for the core one.
        name: The one object that it is about; empty for all of them.
    """

    verb: str
    resource: str
    group: str
    name: str = ""

    @property
    def resource_and_group(self) -> str:
        """The resource as kubectl names it, with the object's name where there is one."""
        resource = f"{self.resource}.{self.group}" if self.group else self.resource
        return f"{resource}/{self.name}" if self.name else resource

    def is_granted_by(self, rule: Mapping[str, Any]) -> bool:
        """A rule covers it: for its object, or for objects of every name."""
        names = rule.get("resourceNames")
        return (
            (not names or self.name in names)
            and bool({"*", self.verb} & set(rule.get("verbs") or []))
            and bool({"*", self.group} & set(rule.get("apiGroups") or []))
            and bool({"*", self.resource} & set(rule.get("resources") or []))
        )


@dataclass(frozen=True)
class RoleManifest:
    """A Role or ClusterRole of the tree.

    Attributes:
        kind: ``Role`` or ``ClusterRole``.
        name: Its name.
        path: Its file.
        rights: What it grants.
        without: What is not checked without it; empty for one that a run needs.
        disruptions: The disruptions that need it; empty where every run of its mode does.
    """

    kind: str
    name: str
    path: Path
    rights: tuple[Right, ...]
    without: str = ""
    disruptions: frozenset[str] = frozenset()

    def is_needed_for(self, disruptions: Iterable[str]) -> bool:
        """Whether a run that carries out these disruptions needs it."""
        return not self.disruptions or not self.disruptions.isdisjoint(disruptions)

    def command(self, user: str, namespace: str) -> str:
        """What an administrator runs to apply it and to bind it to a user, next to the subjects that it is bound to."""
        scoped = self.kind == "Role"
        kubectl = f"kubectl -n {namespace}" if scoped else "kubectl"
        apply = f"{kubectl} apply -f {shlex.quote(str(self.path))}"
        if not user:
            return apply
        account = user.removeprefix(_SERVICE_ACCOUNT)
        subject = f"--serviceaccount={account}" if account != user else f"--user={shlex.quote(user)}"
        binding = f"{self.kind.lower()}binding {self.name} --{self.kind.lower()}={self.name} {subject}"
        return f"{apply} && {kubectl} create {binding} --dry-run=client -o yaml | {kubectl} auth reconcile -f -"


def load_roles(mode: str) -> list[RoleManifest]:
    """The Roles of a mode.

    Args:
        mode: ``read-only`` or ``deploy``; ``load``, which load workers on an existing stage need too; ``publish``,
            which publishing from one needs too; or ``disrupt``, which disruptions need too.
    """
    folder = fixtures_dir() / "access" / mode
    found = []
    for path in sorted(folder.glob("*.yaml")):
        for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if manifest and manifest["kind"] in ("Role", "ClusterRole"):
                metadata = manifest["metadata"]
                annotations = metadata.get("annotations") or {}
                rights = tuple(_rights(manifest["rules"]))
                named = frozenset(filter(None, annotations.get(DISRUPTIONS, "").replace(" ", "").split(",")))
                role = RoleManifest(
                    manifest["kind"], metadata["name"], path, rights, annotations.get(WITHOUT, ""), named
                )
                found.append(role)
    return found


def _rights(rules: Iterable[Mapping[str, Any]]) -> Iterable[Right]:
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames") or [""]:
                    yield from (Right(verb, resource, group, name) for verb in rule["verbs"])


def check_access(
    kube: DynamicClient, mode: str, namespace: str, journal: Journal, disruptions: Iterable[str] = ()
) -> None:
    """Refuse a user who may not do what a mode needs, and name what is not checked for want of optional rights.

    Where the cluster does not answer reviews, nothing is refused: the request that needs a right fails later.

    Args:
        kube: The cluster.
        mode: See `load_roles`.
        namespace: The stage's.
        journal: Keeps the missing optional rights.
        disruptions: Those that the run carries out.

    Raises:
        EnvironmentUnusable: rights are missing; names each verb and resource, the Role and the command to apply it.
    """
    roles = [role for role in load_roles(mode) if role.is_needed_for(disruptions)]
    try:
        missing = find_missing(kube, [right for role in roles for right in role.rights], namespace)
        user = _find_user(kube) if missing else ""
    except ApiServerUnreachable:
        raise
    except (EnvironmentUnusable, RequestRejected) as error:
        journal.event("rights", namespace, unchecked=str(error.message))
        return
    for role in roles:
        rights = [right for right in role.rights if right in missing]
        if not rights:
            continue
        text = f"{user or 'this user'} may not {describe(rights)} in namespace {namespace}"
        grants = f"{role.kind} {role.name} ({role.path}) grants it"
        if not role.without:
            raise EnvironmentUnusable(
                f"{text}, which a run needs ({mode}); {grants}",
                hint=f"an administrator runs: {role.command(user, namespace)}",
            )
        journal.event("rights", namespace, missing=describe(rights), role=role.name)
        journal.say(f"access: {text}: {role.without}; {grants}")


def describe(rights: Sequence[Right]) -> str:
    """Verbs and resources in the order of the Role: ``get, list pods; get pods/log``."""
    verbs: dict[str, list[str]] = {}
    for right in rights:
        verbs.setdefault(right.resource_and_group, []).append(right.verb)
    resources: dict[str, list[str]] = {}
    for resource, named in verbs.items():
        resources.setdefault(", ".join(named), []).append(resource)
    return "; ".join(f"{named} {', '.join(found)}" for named, found in resources.items())


def find_missing(kube: DynamicClient, rights: Sequence[Right], namespace: str) -> list[Right]:
    """The rights that this user does not have in a namespace, of resources that the cluster serves.

    The API server lists a user's rules in one answer, and says when an authorizer could not list its own: then each
    right that no rule grants is asked for by itself.
    """
    status = _review(kube, "SelfSubjectRulesReview", {"namespace": namespace})
    rules = status.get("resourceRules") or []
    missing = [right for right in rights if not any(right.is_granted_by(rule) for rule in rules)]
    if status.get("incomplete"):
        missing = [right for right in missing if not _is_allowed(kube, right, namespace)]
    return [right for right in missing if _is_served(kube, right)]


def _is_allowed(kube: DynamicClient, right: Right, namespace: str) -> bool:
    resource, _, subresource = right.resource.partition("/")
    attributes = {"verb": right.verb, "group": right.group, "resource": resource, "subresource": subresource}
    if resource == "namespaces":
        attributes["name"] = namespace
    if right.name:
        attributes["name"] = right.name
    attributes["namespace"] = namespace
    return bool(_review(kube, "SelfSubjectAccessReview", {"resourceAttributes": attributes}).get("allowed"))


def _is_served(kube: DynamicClient, right: Right) -> bool:
    """The cluster serves the resource; the core group is always there."""
    if not right.group:
        return True
    with translate_api_errors(f"discover {right.resource_and_group}"):
        found = kube.resources.search(group=right.group)
    return any(resource.group == right.group and resource.name == right.resource for resource in found)


def _find_user(kube: DynamicClient) -> str:
    """The user as the API server knows it; empty on a server before Kubernetes 1.28."""
    try:
        status = _review(kube, "SelfSubjectReview", None, "/apis/authentication.k8s.io/v1")
    except RequestRejected:
        return ""
    return str((status.get("userInfo") or {}).get("username") or "")


def _review(kube: DynamicClient, kind: str, spec: Mapping[str, Any] | None, prefix: str = _REVIEWS) -> dict[str, Any]:
    """The status of a review; nothing is stored."""
    body = {"apiVersion": prefix.removeprefix("/apis/"), "kind": kind, **({"spec": spec} if spec else {})}
    with translate_api_errors(f"create {kind}"):
        response = kube.request("post", f"{prefix}/{kind.lower()}s", body=body, serialize=False)
        return dict(json.loads(response.data).get("status") or {})
