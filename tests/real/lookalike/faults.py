"""The faults of the way to a model, and of its user's rights: what makes each, and how a run must name it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pytest_vllm_stage.core.errors import ENVIRONMENT_EXIT_CODE
from tests.real.lookalike.router import Router
from tests.real.lookalike.stage import RoutedStage
from tests.real.lookalike.validator import MissingRight
from tests.unit.made_certificates import DAY, Authority

HERE = Path(__file__).parent


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
        advises: What the whole output says besides.
        key: The bearer token that the user sends to the models.
        slow: Its check takes minutes.
        status: The run's exit status; 0 where any failure will do.
    """

    change: Change
    suite: str
    check: str
    says: str
    listed: str = "200"
    role: str = "full"
    options: tuple[str, ...] = ()
    missing: MissingRight | None = None
    advises: str = ""
    key: str = ""
    slow: bool = False
    status: int = 0


def forget_timeouts(router: Router, _: Places) -> Router:
    """The Routes have no annotation, so that the router's own limit applies: 10 s, since the lanes are short, too."""
    return dataclasses.replace(router, upstreams=[dataclasses.replace(one, timeout="10s") for one in router.upstreams])


def with_rules(router: Router, *rules: str) -> Router:
    return dataclasses.replace(router, rules=rules)


def buffer_answers(router: Router, _: Places) -> Router:
    return with_rules(router, "http-response wait-for-body time 20s at-least 30000")


def ignore_leaving_clients(router: Router, _: Places) -> Router:
    return dataclasses.replace(router, options=())


def limit_bodies(router: Router, _: Places) -> Router:
    return with_rules(router, "http-request deny deny_status 413 if { req.hdr(content-length) -m int gt 100000 }")


def limit_headers(router: Router, _: Places) -> Router:
    """A request's headers may have 8 KiB."""
    return dataclasses.replace(router, buffer_bytes=16384)


def drop_idle_connections(router: Router, _: Places) -> Router:
    """The first request after 6 s without one gets nothing, as behind a firewall that forgot the connection."""
    return with_rules(
        router,
        "timeout client 300s",  # the router's own 30 s would close the connection first, which a client sees
        "http-request set-var(sess.idle) date,sub(sess.last)",
        "http-request reject if { var(sess.last) -m found } { var(sess.idle) -m int ge 6 }",
        "http-request set-var(sess.last) date",
    )


def lose_upstreams(router: Router, _: Places) -> Router:
    return dataclasses.replace(
        router, upstreams=[dataclasses.replace(one, address="127.0.0.1:9", guard=None) for one in router.upstreams]
    )


def lose_object_store(router: Router, _: Places) -> Router:
    upstreams = [
        dataclasses.replace(one, address="127.0.0.1:9") if one.host.startswith("minio") else one
        for one in router.upstreams
    ]
    return dataclasses.replace(router, upstreams=upstreams)


def accept_everyone(router: Router, _: Places) -> Router:
    """The Route leads past the proxy."""
    return dataclasses.replace(router, upstreams=[dataclasses.replace(one, guard=None) for one in router.upstreams])


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
LANES, STREAMING, SERVICE, TRANSPORT = (
    f"suites/inference/test_{name}.py" for name in ("slow_lanes", "streaming", "service", "transport")
)
REPORTED = "test_health_and_version_are_reported"
SHORT_LANES = ("-p", "tests.real.lookalike.short_lanes")
FAULTS = {
    "timeout": Fault(
        forget_timeouts,
        LANES,
        "test_long_answer_arrives_whole",
        r"answered 504 Gateway Time-out, sent by HAProxy, which OpenShift's router is",
        options=SHORT_LANES,
    ),
    "idle_dropped": Fault(
        drop_idle_connections,
        LANES,
        "test_idle_connection_is_usable",
        r"the next request on an idle connection failed after \d+ s: no answer: RemoteDisconnected",
        options=SHORT_LANES,
    ),
    "buffering": Fault(
        buffer_answers, STREAMING, "test_stream_arrives_incrementally", r"the stream was buffered: all 40 deltas"
    ),
    "left_client": Fault(
        ignore_leaving_clients,
        "suites/inference/test_isolation.py",
        "test_client_that_leaves_before_its_answer_frees_its_slot",
        r"s after its client left, a whole answer of \S+ s still runs",
        slow=True,
    ),
    "body_limit": Fault(
        limit_bodies,
        TRANSPORT,
        "test_large_body_is_read_whole",
        r"a body of 128 KiB was answered 413, sent by HAProxy, which OpenShift's router is: .*exceeds the maximum",
        advises="client_max_body_size",
    ),
    "header_limit": Fault(
        limit_headers,
        SERVICE,
        REPORTED,
        r"answered 400 Bad request, sent by HAProxy, which OpenShift's router is: .*sent an invalid request",
        advises="by a long token for example",
        key="eyJ" + 9000 * "a",
    ),
    "no_upstream": Fault(
        lose_upstreams,
        SERVICE,
        REPORTED,
        r"answered 503 Service Unavailable, sent by the OpenShift router: Application is not available",
        listed="503",
    ),
    "no_object_store": Fault(
        lose_object_store,
        "suites/benchmark/test_jobs.py",
        "test_job_completes_with_a_report_for_each_rate",
        r"the OpenShift router answers HTTP 503 instead of the S3 API at https://minio\S+: Application is not av",
        status=ENVIRONMENT_EXIT_CODE,
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
        r"GET /v1/models answered 403 with the token of default, sent by kube-rbac-proxy, expected 200: "
        r"Forbidden \(user=system:serviceaccount:lookalike:default, verb=get, resource=inferenceservices",
        role="quantized",
        options=(f"--stage-profile={HERE / 'other_account.toml'}",),
    ),
    "no_create": Fault(
        change_nothing,
        PROTECTION,
        "model_answers_its_own_clients",
        r"POST /v1/completions answered 403 with the token of reader, sent by kube-rbac-proxy, expected 200: "
        r"Forbidden \(user=system:serviceaccount:lookalike:reader, verb=create, resource=inferenceservices",
        advises="next: kubectl auth can-i create inferenceservices/smollm2-135m-quantized --as=",
        role="quantized",
        options=(f"--stage-profile={HERE / 'reader_account.toml'}",),
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
