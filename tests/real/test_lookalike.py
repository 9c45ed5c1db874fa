"""A stage behind OpenShift's kind of router: green when it is healthy, and each fault of the way there is named.

The Route's definition, TLS, HAProxy, TokenReview and SubjectAccessReview are real, and the run has the rights of
fixtures/access alone; the engine is the simulated one.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_vllm_stage.cluster.facts import ClusterFacts
from tests.real.lookalike.router import Router, find_haproxy, run_router
from tests.real.lookalike.stage import ACCOUNTS, MODELS, NAMESPACE, Outcome, RoutedStage, deploy_routed_stage
from tests.real.lookalike.validator import MissingRight, create_validator
from tests.unit.made_certificates import DAY, Authority

pytestmark = pytest.mark.real

#: Loopback addresses of the routers: no other server of this machine listens there.
ADDRESS = "127.83.7.{}"
AT_ONCE = 3
TRUSTED = "--stage-ca-file=cluster"
#: Every suite, and of the inference checks those that are about the way to the model.
HEALTHY = (
    *(f"suites/{name}" for name in ("deployment", "slo", "benchmark", "registry")),
    *(f"suites/inference/test_{name}.py" for name in ("service", "streaming", "transport", "slow_lanes")),
)
#: What is skipped, besides load steps that a busy machine made invalid: for this user the declared Roles are
#: not readable, no Job may be created, and the overlay has no benchmark Jobs.
NOT_CHECKED = {
    "suites/deployment/test_drift.py::test_declared_objects_are_live_unchanged",
    "suites/deployment/test_storage.py::test_weights_are_unaltered",
    "suites/benchmark/test_jobs.py::test_job_completes_with_a_report_for_each_rate",
    "suites/benchmark/test_jobs.py::test_reports_are_not_vacuous",
    "suites/benchmark/test_jobs.py::test_reports_keep_the_objectives",
}
CURL_S = 20
#: Two base64url parts of JSON objects: the head and the claims of a ServiceAccount's token.
JWT = re.compile(rb"eyJ[\w-]{10,}\.eyJ[\w-]{10,}")


class Places(NamedTuple):
    """Where the routers find what they need."""

    stage: RoutedStage
    authority: Authority
    haproxy: str
    folder: Path


Change = Callable[[Router, Places], Router]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault of the way to the models.

    Attributes:
        change: Makes a router faulty.
        suite: The file of the check that must catch it.
        check: That check.
        says: What the first screen says, as an expression.
        listed: What ``curl -k /v1/models`` prints of the status.
        role: The model's role.
        options: Further options of the run.
        missing: A right that the user lacks.
    """

    change: Change
    suite: str
    check: str
    says: str
    listed: str = "200"
    role: str = "full"
    options: tuple[str, ...] = ()
    missing: MissingRight | None = None


def forget_timeouts(router: Router, _: Places) -> Router:
    """The Routes have no annotation: the router's 30 s apply."""
    return dataclasses.replace(router, upstreams=[dataclasses.replace(one, timeout="") for one in router.upstreams])


def with_rules(router: Router, *rules: str) -> Router:
    return dataclasses.replace(router, rules=rules)


def buffer_answers(router: Router, _: Places) -> Router:
    return with_rules(router, "http-response wait-for-body time 20s at-least 30000")


def drop_idle_connections(router: Router, _: Places) -> Router:
    """The first request after 10 s without one gets nothing, as behind a firewall that forgot the connection."""
    return with_rules(
        router,
        "timeout client 300s",  # the router's own 30 s would close the connection first, which a client sees
        "http-request set-var(sess.idle) date,sub(sess.last)",
        "http-request reject if { var(sess.last) -m found } { var(sess.idle) -m int ge 10 }",
        "http-request set-var(sess.last) date",
    )


def lose_upstreams(router: Router, _: Places) -> Router:
    return dataclasses.replace(
        router, upstreams=[dataclasses.replace(one, address="127.0.0.1:9", review="") for one in router.upstreams]
    )


def accept_everyone(router: Router, _: Places) -> Router:
    """The Route leads past the proxy."""
    return dataclasses.replace(router, upstreams=[dataclasses.replace(one, review="") for one in router.upstreams])


def change_nothing(router: Router, _: Places) -> Router:
    """The fault is not the router's."""
    return router


def with_expired_certificate(router: Router, places: Places) -> Router:
    hosts = [one.host for one in router.upstreams]
    pem = places.authority.issue(*hosts, since=-9 * DAY, until=-2 * DAY, name="expired")
    return dataclasses.replace(router, certificate=pem)


def with_certificate_of_another_host(router: Router, places: Places) -> Router:
    return dataclasses.replace(router, certificate=places.authority.issue("console.apps.stage.test", name="other"))


PROTECTION = "suites/deployment/test_protection.py"
LANES, STREAMING, SERVICE = (f"suites/inference/test_{name}.py" for name in ("slow_lanes", "streaming", "service"))
REPORTED = "test_health_and_version_are_reported"
FAULTS = {
    "timeout_30s": Fault(
        forget_timeouts,
        LANES,
        "test_long_answer_arrives_whole",
        r"answered 504 Gateway Time-out, sent by HAProxy, which OpenShift's router is",
    ),
    "idle_dropped": Fault(
        drop_idle_connections,
        LANES,
        "test_idle_connection_is_usable",
        r"the next request on an idle connection failed after \d+ s: no answer: RemoteDisconnected",
    ),
    "buffering": Fault(
        buffer_answers, STREAMING, "test_stream_arrives_incrementally", r"the stream was buffered: all 40 deltas"
    ),
    "no_upstream": Fault(
        lose_upstreams,
        SERVICE,
        REPORTED,
        r"answered 503 Service Unavailable, sent by the OpenShift router: Application is not available",
        listed="503",
    ),
    "no_protection": Fault(
        accept_everyone,
        PROTECTION,
        "protected_model_alone_requires_a_token",
        r"GET /v1/models answered 200 without a token, expected 401 or 403: smollm2-135m-quantized is protected",
        role="quantized",
    ),
    "no_right": Fault(
        change_nothing,
        PROTECTION,
        "model_answers_its_own_clients",
        r"GET /v1/models answered 403 with the token of default, expected 200: 'Forbidden'",
        role="quantized",
        options=(f"--stage-profile={Path(__file__).parent / 'lookalike' / 'other_account.toml'}",),
    ),
    "no_authorities": Fault(
        change_nothing,
        SERVICE,
        REPORTED,
        r"authorities that this user may not read: .*: missing right: get configmaps in namespace "
        r"openshift-config-managed .*signed by 'ingress-operator', an authority that is not trusted",
        missing=MissingRight("vllm-stage-read-authorities", "configmaps", "get"),
    ),
    "no_token_request": Fault(
        change_nothing,
        PROTECTION,
        "model_answers_its_own_clients",
        r"serviceaccount/smollm2-135m-quantized-sa in namespace lookalike: missing right: create serviceaccounts/token",
        role="quantized",
        missing=MissingRight("vllm-stage-request-tokens", "serviceaccounts/token", "create"),
    ),
    "no_registry_list": Fault(
        change_nothing,
        "suites/registry/test_entities.py",
        "test_model_and_version_are_registered",
        r"the right to list modelregistries\S+ in namespace rhoai-model-registries is missing",
        options=("--stage-strict",),
        missing=MissingRight("vllm-stage-find-registry", "modelregistries", "list"),
    ),
    "expired": Fault(
        with_expired_certificate, SERVICE, REPORTED, r"the server's certificate has expired at \S+, 2 days ago"
    ),
    "wrong_host": Fault(
        with_certificate_of_another_host,
        SERVICE,
        REPORTED,
        r"is for another host: expected smollm2-135m-lookalike\.apps\.stage\.test, got console\.apps\.stage\.test",
    ),
}


class Planted(NamedTuple):
    """What a run through a faulty router gave, and the status that curl printed for the list of models."""

    outcome: Outcome
    listed: str


def require_haproxy() -> str:
    """HAProxy's program; without it the tests are skipped, and fail where CI must have it."""
    program = find_haproxy()
    if program is not None:
        return program
    missing = "no haproxy on the PATH; Debian: apt-get install haproxy"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="module")
def places(simulated_cluster: ClusterFacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    haproxy = require_haproxy()
    folder = tmp_path_factory.mktemp("lookalike")
    (folder / "authority").mkdir()
    authority = Authority(folder / "authority", "ingress-operator")
    with deploy_routed_stage(simulated_cluster, authority.certificate, folder) as stage:
        yield Places(stage, authority, haproxy, folder)


def make_router(places: Places, number: int, name: str) -> Router:
    """A healthy router on an address of its own."""
    upstreams = tuple(places.stage.upstreams.values())
    hosts = [one.host for one in upstreams]
    return Router(name, ADDRESS.format(number), places.authority.issue(*hosts, name=name), upstreams)


def run_through(places: Places, router: Router, *arguments: str) -> Outcome:
    with run_router(router, places.haproxy, places.folder):
        return places.stage.run(router.address, places.folder / router.name, *arguments)


@pytest.fixture(scope="module")
def planted(places: Places, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Planted]]:
    """The outcome of each fault of this run, a few at a time."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = [call.params["name"] for call in calls if call and call.params.get("name") in FAULTS]
    # OpenSSL's authority keeps a database, so the certificates are made before the threads start.
    routers = {
        name: FAULTS[name].change(make_router(places, number, name), places) for number, name in enumerate(chosen, 2)
    }
    pool = ThreadPoolExecutor(AT_ONCE)
    running = {name: pool.submit(plant, places, router, FAULTS[name]) for name, router in routers.items()}
    yield lambda name: running[name].result()
    pool.shutdown(cancel_futures=True)


def plant(places: Places, router: Router, fault: Fault) -> Planted:
    """Run the checks that must catch a fault, and look at the models as a person would."""
    stage, missing = places.stage, fault.missing
    lacking = None
    if missing:
        account = f"without-{missing.verb}-{missing.role.removeprefix('vllm-stage-')}"
        lacking = create_validator(stage.cluster, NAMESPACE, ACCOUNTS, places.folder, account, missing)
    with run_router(router, places.haproxy, places.folder):
        listed = list_models(router)
        outcome = stage.run(
            router.address,
            places.folder / router.name,
            fault.suite,
            "-k",
            f"{fault.check} and {fault.role}",
            *fault.options,
            TRUSTED,
            validator=lacking,
        )
    return Planted(outcome, listed)


def list_models(router: Router) -> str:
    """The status that ``curl /v1/models`` prints, as it is typed behind a private authority: without verification."""
    host = next(one.host for one in router.upstreams if not one.review)
    place = f"{host}:443:{router.address}"
    command = ["curl", "-sk", "-o", os.devnull, "-w", "%{http_code}", "--resolve", place, f"https://{host}/v1/models"]
    return subprocess.run(command, capture_output=True, text=True, timeout=CURL_S, check=True).stdout


def test_suites_are_green_through_a_healthy_router(places: Places) -> None:
    outcome = run_through(places, make_router(places, 1, "healthy"), *HEALTHY, TRUSTED, "-n", "2")
    check_healthy_run(places, outcome)
    files = [path for path in (places.folder / "healthy" / "run").rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [path for path in files if JWT.search(path.read_bytes())], "the run's files hold a token"


@pytest.mark.nightly
def test_whole_suites_are_green_through_a_healthy_router(places: Places) -> None:
    outcome = run_through(places, make_router(places, 1, "whole"), "suites/", TRUSTED, "-n", "2")
    check_healthy_run(places, outcome)
    assert len(outcome.names("passed")) > 500


def check_healthy_run(places: Places, outcome: Outcome) -> None:
    """Every suite ran, by its Route and with its token, and nothing failed."""
    assert outcome.status == 0, outcome.output
    passed, names = outcome.names("passed"), {test["name"] for test in outcome.record["tests"]}
    for check in ("model_answers_its_own_clients", "protected_model_alone_requires_a_token"):
        assert f"{PROTECTION}::test_{check}[quantized]" in passed
    for role in MODELS:
        assert f"suites/inference/test_slow_lanes.py::test_long_answer_arrives_whole[{role}]" in passed
        assert f"suites/registry/test_results.py::test_published_numbers_equal_the_artifact[{role}]" in passed
        steps = [name for name in names if name.startswith(f"suites/slo/test_slo.py::test_objectives[{role}-")]
        assert len(steps) == 2, outcome.output
    left = {
        name.partition("[")[0] for name in names - passed if not name.startswith(("suites/slo/", "suites/inference/"))
    }
    assert left <= NOT_CHECKED, outcome.output
    assert "role/smollm2-135m-quantized-view, rolebinding/smollm2-135m-quantized-view" in outcome.output
    ways = {address["name"]: address["way"] for address in outcome.record["addresses"]}
    assert ways == dict.fromkeys((*MODELS.values(), "minio", "model-registry"), "Route")
    (token,) = outcome.record["tokens"]
    assert (token["name"], token["account"]) == ("quantized", "smollm2-135m-quantized-sa")
    assert outcome.record["authorities"]["sources"][0].startswith("configmap openshift-config-managed/default-ingress")


@pytest.mark.parametrize("name", FAULTS)
def test_fault_of_the_way_is_named_in_the_first_screen(name: str, planted: Callable[[str], Planted]) -> None:
    fault, (outcome, listed) = FAULTS[name], planted(name)
    assert outcome.status not in (0, 5), outcome.output
    assert re.search(fault.says, outcome.first_screen), outcome.output
    assert listed == fault.listed
