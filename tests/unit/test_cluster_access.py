"""Rights compared with the Roles under fixtures/access: each missing verb is named before a run starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_vllm_stage.cluster import access, client
from pytest_vllm_stage.cluster.access import Right, RoleManifest
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.report import record
from pytest_vllm_stage.run.context import Run, RunIdentity
from pytest_vllm_stage.session import kept, lifecycle
from pytest_vllm_stage.settings.disruptions import DISRUPTIONS
from pytest_vllm_stage.settings.resolver import resolve_settings
from pytest_vllm_stage.stage.facts import StageFacts
from tests.unit.made_api import KINDS, KSERVE, ApiServer, kubeconfig, served, status

Object = dict[str, Any]
ACCOUNT = "system:serviceaccount:vllm-stage:vllm-stage-validator"
RULES = "POST /apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
ASKED = "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
PROFILE = 'name = "p"\noverlay = "overlay"\nnamespace = "stage"\n[models.full]\ninference_service = "f"\n'
MODES = ("read-only", "deploy")
EXTRA = [
    ("", "v1", "Namespace", "namespaces", False),
    ("route.openshift.io", "v1", "Route", "routes", True),
    ("kubeflow.org", "v1", "Notebook", "notebooks", True),
    ("apps", "v1", "ReplicaSet", "replicasets", True),
]


@dataclasses.dataclass
class Reviewer(ApiServer):
    """An API server that knows one user's rights."""

    rules: list[Object] = dataclasses.field(default_factory=list)
    incomplete: bool = False
    allowed: set[Right] = dataclasses.field(default_factory=set)
    user: str = ACCOUNT

    def answer(self, method: str, target: str, accept: str, body: Object | None) -> tuple[int, Any]:
        scripted = self.answers.get(f"{method} {target}")
        kind = (body or {}).get("kind", "")
        if scripted or not kind.endswith("Review"):
            return scripted or super().answer(method, target, accept, body)
        assert body is not None
        if kind == "SelfSubjectReview":
            return 201, {"status": {"userInfo": {"username": self.user}}}
        if kind == "SelfSubjectRulesReview":
            assert body["spec"] == {"namespace": "stage"}
            return 201, {"status": {"resourceRules": self.rules, "incomplete": self.incomplete}}
        asked = body["spec"]["resourceAttributes"]
        name = "/".join(part for part in (asked["resource"], asked["subresource"]) if part)
        about = "" if name == "namespaces" else asked.get("name", "")
        right = Right(asked["verb"], name, asked["group"], about)
        return 201, {"status": {"allowed": right in self.allowed}}


@pytest.fixture
def api() -> Iterator[Reviewer]:
    with served(Reviewer(kinds=[*KINDS, *KSERVE, *EXTRA])) as server:
        assert isinstance(server, Reviewer)
        yield server


@pytest.fixture
def kube(api: Reviewer, tmp_path: Path) -> Iterator[Any]:
    facts = api.facts(tmp_path)
    with client.connection(facts.kubeconfig, facts.context) as connected:
        yield connected


def rules_of(rights: list[Right]) -> list[Object]:
    return [
        {"verbs": [one.verb], "apiGroups": [one.group], "resources": [one.resource]}
        | ({"resourceNames": [one.name]} if one.name else {})
        for one in rights
    ]


def all_rights(mode: str) -> list[Right]:
    return [right for role in access.load_roles(mode) for right in role.rights]


def required(mode: str) -> RoleManifest:
    (found,) = [role for role in access.load_roles(mode) if not role.without]
    return found


def check(kube: Any, mode: str = "read-only", *disruptions: str) -> list[str]:
    """The lines about optional rights."""
    lines: list[str] = []
    access.check_access(kube, mode, "stage", Journal(say=lines.append), disruptions)
    return lines


@pytest.mark.parametrize("mode", MODES)
def test_the_roles_are_enough_and_take_one_request(api: Reviewer, kube: Any, mode: str) -> None:
    before = len(api.requests)
    for rules in (rules_of(all_rights(mode)), [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]):
        api.rules = rules
        assert check(kube, mode) == []
    assert api.requests[before:] == [RULES, RULES]


@pytest.mark.parametrize(("mode", "least"), [("read-only", 25), ("deploy", 60), ("load", 12), ("publish", 0)])
def test_each_verb_that_is_removed_is_named_with_its_role(api: Reviewer, kube: Any, mode: str, least: int) -> None:
    role = required(mode)
    assert len(role.rights) > least
    for removed in role.rights:
        api.rules = rules_of([right for right in all_rights(mode) if right != removed])
        with pytest.raises(EnvironmentUnusable) as failed:
            check(kube, mode)
        what = f"{ACCOUNT} may not {removed.verb} {removed.resource_and_group} in namespace stage"
        assert failed.value.message == (
            f"{what}, which a run needs ({mode}); {role.kind} {role.name} ({role.path}) grants it"
        )


@pytest.mark.parametrize("mode", MODES)
def test_each_optional_verb_that_is_removed_is_named_with_what_is_not_checked(
    api: Reviewer, kube: Any, mode: str
) -> None:
    optional = [role for role in access.load_roles(mode) if role.without]
    served = {(group, plural) for group, _, _, plural, _ in api.kinds} | {("", "pods/log")}
    for role in optional:
        for removed in role.rights:
            if removed.group and (removed.group, removed.resource) not in served:
                continue
            api.rules = rules_of([right for right in all_rights(mode) if right != removed])
            (line,) = check(kube, mode)
            assert f"may not {removed.verb} {removed.resource_and_group} in namespace stage: {role.without}" in line


def test_missing_verbs_are_grouped_as_the_role_groups_them(api: Reviewer, kube: Any) -> None:
    api.rules = rules_of(
        [right for right in all_rights("read-only") if not right.resource.startswith(("pods", "jobs"))]
    )
    with pytest.raises(EnvironmentUnusable, match=r"may not get, list pods, jobs\.batch; get pods/log in namespace"):
        check(kube)


def test_the_command_applies_the_role_and_binds_it(api: Reviewer, kube: Any) -> None:
    path = fixtures_dir() / "access" / "read-only" / "stage.yaml"
    apply = f"kubectl -n stage apply -f {path} && kubectl -n stage create rolebinding vllm-stage-read-only"
    end = "--dry-run=client -o yaml | kubectl -n stage auth reconcile -f -"
    for user, subject in ((ACCOUNT, "--serviceaccount=vllm-stage:vllm-stage-validator"), ("kube:al", "--user=kube:al")):
        api.user = user
        with pytest.raises(EnvironmentUnusable) as failed:
            check(kube)
        assert failed.value.hint == f"an administrator runs: {apply} --role=vllm-stage-read-only {subject} {end}"
    with pytest.raises(EnvironmentUnusable) as failed:
        check(kube, "deploy")
    assert failed.value.hint.startswith("an administrator runs: kubectl apply -f ")
    assert failed.value.hint.endswith(" | kubectl auth reconcile -f -")
    assert "kubectl create clusterrolebinding vllm-stage-deploy --clusterrole=vllm-stage-deploy" in failed.value.hint


def test_without_an_optional_role_the_run_goes_on_and_names_what_is_not_checked(api: Reviewer, kube: Any) -> None:
    api.rules = rules_of([right for right in all_rights("read-only") if right.resource not in ("secrets", "nodes")])
    nodes, secrets = check(kube)
    assert "may not list nodes in namespace stage: nodes, volumes and storage classes are not checked" in nodes
    assert "may not get, list secrets in namespace stage: suites/deployment cannot judge Secrets" in secrets


def test_what_the_cluster_does_not_serve_is_not_needed(api: Reviewer, kube: Any) -> None:
    api.rules = rules_of([right for right in all_rights("read-only") if right.resource != "routes"])
    with pytest.raises(EnvironmentUnusable, match=r"may not get, list routes\.route\.openshift\.io"):
        check(kube)
    api.kinds = [kind for kind in api.kinds if kind[2] != "Route"]
    kube.resources.invalidate_cache()
    assert check(kube) == []


def test_a_rule_for_single_names_is_not_enough(api: Reviewer, kube: Any) -> None:
    rights = all_rights("read-only")
    api.rules = [
        rule | {"resourceNames": ["one"]} if rule["resources"] == ["jobs"] else rule for rule in rules_of(rights)
    ]
    with pytest.raises(EnvironmentUnusable, match=r"may not get, list jobs\.batch"):
        check(kube)


def test_a_right_on_one_object_is_granted_by_name_or_for_all_of_them(api: Reviewer, kube: Any) -> None:
    secrets = {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}
    for named in ({"resourceNames": ["another", "minio-credentials"]}, {}):
        api.rules = [secrets | named]
        assert check(kube, "publish") == []
    api.rules = [secrets | {"resourceNames": ["another"]}]
    with pytest.raises(EnvironmentUnusable, match=r"may not get secrets/minio-credentials in namespace stage, which"):
        check(kube, "publish")
    api.incomplete, api.allowed = True, set(all_rights("publish"))
    assert check(kube, "publish") == []


def test_each_right_is_asked_for_where_an_authorizer_lists_no_rules(api: Reviewer, kube: Any) -> None:
    api.incomplete, api.allowed = True, set(all_rights("read-only"))
    assert check(kube) == []
    api.allowed.remove(Right("get", "pods/log", ""))
    with pytest.raises(EnvironmentUnusable, match="may not get pods/log in namespace stage"):
        check(kube)


@pytest.mark.parametrize("answer", [(404, status(404, "not found")), (403, status(403, "reviews is forbidden: User"))])
def test_a_cluster_that_answers_no_reviews_refuses_no_one(
    api: Reviewer, kube: Any, answer: tuple[int, Any], tmp_path: Path
) -> None:
    api.answers[RULES] = answer
    journal = Journal(tmp_path / "journal.jsonl")
    access.check_access(kube, "read-only", "stage", journal)
    assert '"unchecked"' in (tmp_path / "journal.jsonl").read_text()


def make_run(api: Reviewer, folder: Path, monkeypatch: pytest.MonkeyPatch, **cli: str) -> Run:
    """A run with a kubeconfig for the server, and these options."""
    (folder / "kc").write_text(yaml.safe_dump(kubeconfig(api.url)))
    monkeypatch.setenv("KUBECONFIG", str(folder / "kc"))
    (folder / "overlay").mkdir()
    (folder / "overlay" / "kustomization.yaml").write_text("resources: []\n")
    (folder / "p.toml").write_text(PROFILE)
    config = resolve_settings({"profile": "p.toml", **cli}.get, {}, lambda _name: None, folder)
    return Run(RunIdentity("r", str(folder / "run"), 1), lambda: config, lambda _line: None)


@pytest.mark.parametrize(("deploys", "mode"), [(False, "read-only"), (True, "deploy")])
def test_a_run_checks_the_rights_of_its_mode_before_anything_else(
    api: Reviewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deploys: bool, mode: str
) -> None:
    run = make_run(api, tmp_path, monkeypatch, context="ctx", deploy=str(deploys).lower())
    api.rules = rules_of([right for right in all_rights(mode) if right.resource != "pods/log"])
    with pytest.raises(EnvironmentUnusable, match=rf"may not get pods/log .* needs \({mode}\)"):
        lifecycle.make_cluster(run)
    api.rules = rules_of([right for right in all_rights(mode) if right.resource != "nodes"])
    assert lifecycle.make_cluster(run).context == "ctx"
    written = record.build(run.journal_path, run.config)
    assert (written["versions"]["kubernetes"], written["load_access"]) == ("v1.34.4", [])
    assert '"missing": "list nodes"' in run.journal_path.read_text()
    assert not api.asked("GET")[-1].endswith("inferenceservices"), "nothing but the rights was asked for"


@pytest.mark.parametrize(
    ("mode", "account_of"),
    [
        ("read-only", "read-only"),
        ("load", "read-only"),
        ("publish", "read-only"),
        ("deploy", "deploy"),
        ("disrupt", "deploy"),
    ],
)
def test_each_role_is_bound_to_the_account_of_its_mode(mode: str, account_of: str) -> None:
    folder = fixtures_dir() / "access" / mode
    bound = list(yaml.safe_load_all((folder / "bindings.yaml").read_text()))
    account_file = fixtures_dir() / "access" / account_of / "service-account.yaml"
    account = yaml.safe_load(account_file.read_text())["metadata"]["name"]
    roles = {(role.kind, role.name) for role in access.load_roles(mode)}
    assert {(one["roleRef"]["kind"], one["roleRef"]["name"]) for one in bound} == roles
    assert {subject["name"] for one in bound for subject in one["subjects"]} == {account}
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(path.name for path in folder.glob("*.yaml") if path.stem != "kustomization")


@pytest.mark.parametrize("cluster", ["existing", "kept"])
@pytest.mark.parametrize("publishes", ["always", "auto"])
def test_a_run_compares_the_rights_to_publish_before_anything_else(
    api: Reviewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, publishes: str
) -> None:
    stage = StageFacts("stage", "earlier", owned=False, targets=())
    earlier = kept.Kept("earlier", dataclasses.replace(api.facts(tmp_path), owned=False), stage, {})
    monkeypatch.setattr(kept, "find", lambda _name: earlier)
    options = {"reuse": "earlier"} if cluster == "kept" else {"context": "ctx"}
    run = make_run(api, tmp_path, monkeypatch, publish=publishes, **options)
    read = [right for right in all_rights("read-only") if right.resource != "secrets"]
    api.rules = rules_of(read)
    if publishes == "always":
        with pytest.raises(EnvironmentUnusable, match=r"may not get secrets/minio-credentials .* needs \(publish\)"):
            lifecycle.make_cluster(run)
        api.rules = rules_of([*read, *all_rights("publish")])
    assert lifecycle.make_cluster(run).context == "ctx"


ROLE_OF = {
    "rollout": "vllm-stage-disrupt-service",
    "scale": "vllm-stage-disrupt-service",
    "pod": "vllm-stage-disrupt-pod",
    "publication": "vllm-stage-disrupt-pod",
    "engine": "vllm-stage-disrupt-engine",
    "drain": "vllm-stage-disrupt-drain",
}


@pytest.mark.parametrize("name", DISRUPTIONS)
def test_a_disruption_needs_its_own_role_and_that_of_all(api: Reviewer, kube: Any, name: str) -> None:
    roles = [role for role in access.load_roles("disrupt") if role.name in ("vllm-stage-disrupt", ROLE_OF.get(name))]
    rights = [right for role in roles for right in role.rights]
    api.rules = rules_of(rights)
    (observed,) = check(kube, "disrupt", name)
    assert "may not get pods/proxy in namespace stage: the requests that each replica has served" in observed
    for role in roles:
        for removed in role.rights:
            api.rules = rules_of([right for right in rights if right != removed])
            with pytest.raises(EnvironmentUnusable) as failed:
                check(kube, "disrupt", name)
            assert f"may not {removed.verb} {removed.resource_and_group} in namespace stage" in failed.value.message
            assert f"(disrupt); ClusterRole {role.name} ({role.path}) grants it" in failed.value.message


def test_roles_of_disruptions_name_known_ones() -> None:
    named = {name for role in access.load_roles("disrupt") for name in role.disruptions}
    assert named == set(ROLE_OF) <= set(DISRUPTIONS)


@pytest.mark.parametrize("cluster", ["existing", "kept"])
@pytest.mark.parametrize("disrupts", [True, False])
def test_a_run_compares_the_rights_of_its_disruptions_before_anything_else(
    api: Reviewer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, disrupts: bool
) -> None:
    stage = StageFacts("stage", "earlier", owned=False, targets=())
    earlier = kept.Kept("earlier", dataclasses.replace(api.facts(tmp_path), owned=False), stage, {})
    monkeypatch.setattr(kept, "find", lambda _name: earlier)
    cli = {"reuse": "earlier"} if cluster == "kept" else {"context": "ctx", "deploy": "true"}
    if disrupts:
        cli |= {"disrupt": "drain", "disrupt_cluster": "earlier" if cluster == "kept" else "ctx"}
    run = make_run(api, tmp_path, monkeypatch, **cli)
    api.rules = rules_of([*all_rights("deploy"), *all_rights("disrupt")])
    assert lifecycle.make_cluster(run).context == "ctx"
    api.rules = rules_of(
        [right for right in [*all_rights("deploy"), *all_rights("disrupt")] if right.resource != "pods/eviction"]
    )
    if disrupts:
        with pytest.raises(EnvironmentUnusable, match=r"may not create pods/eviction .* needs \(disrupt\)"):
            lifecycle.make_cluster(run)
    else:
        assert lifecycle.make_cluster(run).context == "ctx"


def test_the_read_only_roles_change_nothing() -> None:
    assert {right.verb for right in all_rights("read-only")} == {"get", "list"}
