"""A stage behind OpenShift's kind of router: green when it is healthy, and each fault of the way there is named.

The Route's definition, TLS, HAProxy, TokenReview and SubjectAccessReview are real, and the run has the rights of
fixtures/access alone; the engine is the simulated one.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.serving.client import EndpointClient, RequestFailed, Target
from tests.real.live_stage import SILENT, run_kubectl
from tests.real.lookalike.faults import FAULTS, PROTECTION, SHORT_LANES, Fault, Places
from tests.real.lookalike.rbac_proxy import TOKEN_CACHED_S
from tests.real.lookalike.router import ADDRESS, Router, find_haproxy, run_router
from tests.real.lookalike.stage import ACCOUNTS, MODELS, NAMESPACE, Outcome, deploy_routed_stage
from tests.real.lookalike.validator import create_validator
from tests.unit.made_certificates import Authority

pytestmark = pytest.mark.real

AT_ONCE = 3
TRUSTED = "--stage-ca-file=cluster"
#: Every suite, and of the inference checks those that are about the way to the model.
HEALTHY = (
    *(f"suites/{name}" for name in ("deployment", "slo", "benchmark", "registry")),
    *(f"suites/inference/test_{name}.py" for name in ("service", "streaming", "transport", "slow_lanes")),
)
JOBS = "suites/benchmark/test_jobs.py"
#: What is skipped, besides load steps that a busy machine made invalid, those of the benchmark Jobs included: for this
#: user the declared Roles are not readable, and no Job may be created.
NOT_CHECKED = {
    "suites/deployment/test_drift.py::test_declared_objects_are_live_unchanged",
    "suites/deployment/test_storage.py::test_weights_are_unaltered",
    f"{JOBS}::test_reports_keep_the_objectives",
}
#: What a busy machine, the engine or the options decide about.
APART = ("suites/slo/", "suites/inference/", "suites/resilience/")
#: Why other checks are skipped.
EXPLAINED = re.compile(r"does not apply|no profile names a recorded reference|inconclusive")
CURL_S = 60
#: Two base64url parts of JSON objects: the head and the claims of a ServiceAccount's token.
JWT = re.compile(rb"eyJ[\w-]{10,}\.eyJ[\w-]{10,}")


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
            key=fault.key,
        )
    return Planted(outcome, listed)


def list_models(router: Router) -> str:
    """The status that ``curl /v1/models`` prints, as it is typed behind a private authority: without verification."""
    host = next(one.host for one in router.upstreams if one.guard is None)
    place = f"{host}:443:{router.address}"
    command = ["curl", "-sk", "-o", os.devnull, "-w", "%{http_code}", "--resolve", place, f"https://{host}/v1/models"]
    return subprocess.run(command, capture_output=True, text=True, timeout=CURL_S, check=True).stdout


def test_suites_are_green_through_a_healthy_router(places: Places) -> None:
    outcome = run_through(places, make_router(places, 1, "healthy"), *HEALTHY, *SHORT_LANES, TRUSTED, "-n", "2")
    check_healthy_run(places, outcome)
    files = [path for path in (places.folder / "healthy" / "run").rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [path for path in files if JWT.search(path.read_bytes())], "the run's files hold a token"


@pytest.mark.nightly
def test_whole_suites_are_green_through_a_healthy_router(places: Places) -> None:
    """704 of 720 checks pass, in two to five minutes on two cores; the others do not apply, or lack a right."""
    outcome = run_through(places, make_router(places, 1, "whole"), "suites/", TRUSTED, "-n", "2")
    check_healthy_run(places, outcome)
    assert len(outcome.names("passed")) > 650
    skipped = [test for test in outcome.record["tests"] if test["outcome"] == "skipped"]
    unexplained = [test["name"] for test in skipped if not EXPLAINED.search(test["reason"])]
    assert {name.partition("[")[0] for name in unexplained} <= NOT_CHECKED, unexplained


def check_healthy_run(places: Places, outcome: Outcome) -> None:
    """Every suite ran, by its Route and with its token, and nothing failed."""
    assert outcome.status == 0, outcome.output
    passed, names = outcome.names("passed"), {test["name"] for test in outcome.record["tests"]}
    for check in ("model_answers_its_own_clients", "protected_model_alone_requires_a_token"):
        assert f"{PROTECTION}::test_{check}[quantized]" in passed
    for role in MODELS:
        assert f"suites/inference/test_slow_lanes.py::test_long_answer_arrives_whole[{role}]" in passed
        assert f"{JOBS}::test_job_completes_with_a_report_for_each_rate[{role}]" in passed, outcome.output
        assert f"{JOBS}::test_reports_are_not_vacuous[{role}]" in passed, outcome.output
        assert f"suites/registry/test_results.py::test_published_numbers_equal_the_artifact[{role}]" in passed
        steps = [name for name in names if name.startswith(f"suites/slo/test_slo.py::test_objectives[{role}-")]
        assert len(steps) == 2, outcome.output
    left = {name.partition("[")[0] for name in names - passed if not name.startswith(APART)}
    assert left <= NOT_CHECKED, outcome.output
    assert "role/smollm2-135m-quantized-view, rolebinding/reader, rolebinding/smollm2-135m-" in outcome.output
    ways = {address["name"]: address["way"] for address in outcome.record["addresses"]}
    assert ways == dict.fromkeys((*MODELS.values(), "minio", "model-registry"), "Route")
    (token,) = outcome.record["tokens"]
    assert (token["name"], token["account"]) == ("quantized", "smollm2-135m-quantized-sa")
    assert outcome.record["authorities"]["sources"][0].startswith("configmap openshift-config-managed/default-ingress")


def connect_to_guard(places: Places, account: str, *options: str) -> EndpointClient:
    """A client of the protected model's proxy, with a token of a ServiceAccount; without one where none is named."""
    guard = places.stage.upstreams["quantized"].guard
    assert guard
    token = Secret(create_token(places, account, *options)) if account else None
    url = f"https://{guard.address}"
    return EndpointClient(Target("quantized", MODELS["quantized"], url, api_key=token, ca_file=str(guard.authority)))


def create_token(places: Places, account: str, *options: str) -> str:
    return run_kubectl(places.stage.cluster, NAMESPACE, "create", "token", account, *options).strip()


def bind_to_secret(places: Places, name: str) -> tuple[str, ...]:
    """The options of a token that is revoked with a Secret, which is created."""
    run_kubectl(places.stage.cluster, NAMESPACE, "create", "secret", "generic", name)
    return "--bound-object-kind=Secret", f"--bound-object-name={name}"


def delete_secret(places: Places, name: str) -> None:
    run_kubectl(places.stage.cluster, NAMESPACE, "delete", "secret", name)


UNAUTHORIZED = (
    r"GET /v1/models answered 401 Unauthorized, sent by an authenticating proxy \(kube-rbac-proxy or similar\)"
)


def test_kube_rbac_proxy_decides_by_the_token_and_names_itself(places: Places) -> None:
    own, other = ACCOUNTS[0], ACCOUNTS[-1]
    with connect_to_guard(places, own) as client:
        assert [model["id"] for model in client.models()] == [MODELS["quantized"]]
        client.chat("Say hello.", max_tokens=1)
    revoked = connect_to_guard(places, own, *bind_to_secret(places, "revoked"))
    delete_secret(places, "revoked")
    for client in (connect_to_guard(places, ""), revoked):
        with client, pytest.raises(RequestFailed, match=UNAUTHORIZED):
            client.models()
    with connect_to_guard(places, other) as client, pytest.raises(RequestFailed) as refused:
        client.models()
    assert "answered 403 Forbidden, sent by kube-rbac-proxy: Forbidden (user=system:serviceaccount:" in str(
        refused.value
    )
    assert "a RoleBinding must allow this user what the answer names" in refused.value.hint


@pytest.mark.nightly
def test_kube_rbac_proxy_accepts_a_revoked_token_until_it_forgets_it(places: Places) -> None:
    """What docs/access.md says of it: no check of a run notices it, since the proxy answers 200."""
    with connect_to_guard(places, ACCOUNTS[0], *bind_to_secret(places, "bound")) as client:
        client.models()
        delete_secret(places, "bound")
        client.models()
        revoked_s = time.monotonic()

        def observe() -> Observation:
            status = client.raw("GET", "/v1/models").status_code
            return Observation(status == 401, f"answered {status}")

        wait_until("the revoked token is refused", observe, timeout_s=2 * TOKEN_CACHED_S, journal=SILENT)
    assert time.monotonic() - revoked_s > TOKEN_CACHED_S / 2


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly if fault.slow else ()) for name, fault in FAULTS.items()]
)
def test_fault_of_the_way_is_named_in_the_first_screen(name: str, planted: Callable[[str], Planted]) -> None:
    fault, (outcome, listed) = FAULTS[name], planted(name)
    assert outcome.status not in (0, 5), outcome.output
    assert outcome.status == (fault.status or outcome.status), outcome.output
    assert re.search(fault.says, outcome.first_screen), outcome.output
    assert fault.advises in outcome.output
    assert listed == fault.listed
