"""Is each model served as declared, by pods of its current generation?"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.checks.stage import autoscalers
from pytest_vllm_stage.stage import drift
from pytest_vllm_stage.stage.observe import health
from pytest_vllm_stage.standins.engine import SERVER as SIMULATOR

if TYPE_CHECKING:
    from pytest_vllm_stage import EndpointClient, StageFacts, StageReader

    Object = dict[str, Any]

#: Kinds of autoscalers; KServe makes the first one in Standard mode.
SCALERS = ("HorizontalPodAutoscaler", "ScaledObject")


def test_ready_for_its_current_generation(
    reader: StageReader, service: Object, pods: list[Object], kubectl: str
) -> None:
    """The InferenceService is Ready for its current generation.

    During a rollout KServe keeps reporting Ready for the old pods: numbers measured then belong to another model.
    """
    name = service["metadata"]["name"]
    runtime = reader.get("ServingRuntime", drift.runtime_name(service))
    lines = health.check_service(service, runtime, reader.get("Deployment", f"{name}-predictor"), pods)
    assert not lines, health.message(
        f"inferenceservice/{name} is not Ready for its current generation",
        lines,
        f"{kubectl} describe inferenceservice {name}",
    )


def test_replicas_are_as_declared(
    reader: StageReader, declared_service: Object, pods: list[Object], kubectl: str
) -> None:
    """The number of Ready pods is as declared, no pod of an old revision remains, and an autoscaler can change it.

    A missing replica reduces the promised capacity; an old pod holds a GPU that the new one waits for. Without metrics
    an autoscaler leaves the number where it is, and load that the declared range promises to serve is queued.
    """
    name = declared_service["metadata"]["name"]
    lines = health.check_replicas(declared_service, pods)
    scalers = [one for kind in SCALERS for one in reader.listed_where_allowed(kind)]
    lines += autoscalers.check_autoscalers(scalers, name, datetime.datetime.now(datetime.UTC))
    assert not lines, health.message(
        f"inferenceservice/{name} has the wrong number of pods",
        lines,
        f"{kubectl} get pods,hpa -l serving.kserve.io/inferenceservice={name}",
    )


def test_pods_are_ready_without_restarts(
    reader: StageReader, service: Object, pods: list[Object], kubectl: str
) -> None:
    """No container of the model's pods ended or was restarted, but for rare restarts more than a day ago.

    A restart is an out-of-memory kill, a failed liveness probe or a crash: an outage for its users.
    """
    name = service["metadata"]["name"]
    now = datetime.datetime.now(datetime.UTC)
    lines = health.check_pods(pods, reader.events, reader.read_ended_log, now)
    assert not lines, health.message(
        f"inferenceservice/{name} has pods that are not well",
        lines,
        f"{kubectl} describe pods -l serving.kserve.io/inferenceservice={name}",
    )


def test_live_container_is_the_declared_one(
    declared_service: Object, declared_runtime: Object, pods: list[Object], kubectl: str
) -> None:
    """Image, command, arguments, variables and resources of the running container are what the manifests declare.

    Otherwise a ``kubectl edit`` stays unnoticed, and every later number is about another configuration.
    """
    name = declared_service["metadata"]["name"]
    wanted = drift.demand(declared_service, declared_runtime)
    assert wanted.args, f"the manifests of {name} declare no serving arguments: nothing would be compared"
    assert pods, f"inferenceservice/{name} has no pod\n  next: {kubectl} get pods"
    lines = [f"pod {pod['metadata']['name']}: {d}" for pod in pods for d in drift.compare_serving(wanted, pod["spec"])]
    assert not lines, health.message(
        f"inferenceservice/{name} runs another container than is declared",
        lines,
        f"{kubectl} get inferenceservice,servingruntime -o yaml",
    )


def test_live_runtime_is_the_declared_one(
    reader: StageReader, service: Object, declared_service: Object, declared_runtime: Object, kubectl: str
) -> None:
    """The service uses the runtime that its manifest names, and that runtime is as declared.

    A restarted pod takes its image and arguments from the live runtime.
    """
    name = drift.runtime_name(declared_service)
    assert drift.runtime_name(service) == name, (
        f"inferenceservice/{service['metadata']['name']}: expected runtime {name}, "
        f"got {drift.runtime_name(service) or '(any)'}\n  next: {kubectl} get inferenceservice -o yaml"
    )
    live = reader.get("ServingRuntime", name)
    assert live is not None, f"ServingRuntime {name} does not exist\n  next: {kubectl} get servingruntimes"
    lines = drift.compare_serving(
        drift.demand(declared_service, declared_runtime), _with_arguments_of(live, declared_service)
    )
    assert not lines, health.message(
        f"servingruntime/{name} is not as declared", lines, f"{kubectl} get servingruntime {name} -o yaml"
    )


def test_engine_is_the_declared_one(stage: StageFacts, endpoint: EndpointClient) -> None:
    """A real model answers where one is declared; the simulated engine, which names itself, only where it is declared.

    A stand-in that was left behind passes every check of form, but its numbers describe no model.
    """
    owners = sorted({str(card.get("owned_by")) for card in endpoint.models()})
    assert owners, f"{endpoint.target.base_url} lists no model\n  next: curl {endpoint.target.base_url}/v1/models"
    is_simulated = SIMULATOR in owners
    assert is_simulated == stage.simulated, (
        f"{endpoint.target.model} is {'' if is_simulated else 'not '}served by a simulated engine, "
        f"but the declaration is {'' if stage.simulated else 'not '}of one: "
        f"its models are owned by {', '.join(owners)}\n"
        f"  next: curl {endpoint.target.base_url}/v1/models"
    )


def _with_arguments_of(runtime: Object, service: Object) -> Object:
    """The container that a runtime would make for a service, as a pod spec."""
    made = drift.demand(service, runtime)
    resources: dict[str, dict[str, str]] = {"requests": {}, "limits": {}}
    for field, value in made.resources.items():
        kind, _, name = field.partition(".")
        resources[kind][name] = value
    container = {
        "name": drift.SERVING_CONTAINER,
        "image": made.image,
        "command": list(made.command),
        "args": list(made.args),
        "env": [{"name": name, "value": value} for name, value in made.env.items()],
        "resources": resources,
    }
    return {"containers": [container]}
