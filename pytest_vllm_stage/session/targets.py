"""The model endpoints that a run validates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.serving.client import EndpointClient, RequestFailed
from pytest_vllm_stage.serving.failures import CertificateRefused
from pytest_vllm_stage.serving.target import Target, is_simulated
from pytest_vllm_stage.stage.facts import StageFacts, TargetFacts

if TYPE_CHECKING:
    from pytest_vllm_stage.cluster.service_account_tokens import ServiceAccountToken


def find_stage_targets(run: Run, stage: StageFacts, find_cluster: Callable[[], ClusterFacts]) -> dict[str, Target]:
    """The stage's targets by role.

    Args:
        run: The run.
        stage: The stage.
        find_cluster: Finds the stage's cluster, for its authorities and for the tokens of protected models. It is not
            called without need: a suite of a user's own may have a stage and no cluster.

    Raises:
        EnvironmentUnusable: the cluster's authorities are to be trusted, and cannot be read; or this user may not
            request the token of a protected model.
        ConfigError: the ServiceAccount of a protected model does not exist.
    """
    from pytest_vllm_stage.cluster.authorities import find_ca_file

    ca_file = find_ca_file(run, find_cluster()) if run.config.trusts_cluster else run.config.ca_file
    return {
        target.role: Target(
            role=target.role,
            model=target.inference_service,
            base_url=target.base_url,
            max_model_len=target.max_model_len,
            api_key=run.config.api_key or _open_token(run, find_cluster, target),
            ca_file=ca_file,
            unreachable=target.unreachable,
            max_num_seqs=target.max_num_seqs,
            dummy_weights=_has_dummy_weights(run, target.role, target.inference_service),
            token_account=_find_token_account(run, target),
            kernels=_find_kernels(run, target.role, target.inference_service) or stage.kernels,
        )
        for target in stage.targets
    }


def _open_token(run: Run, find_cluster: Callable[[], ClusterFacts], target: TargetFacts) -> ServiceAccountToken | None:
    """The token of a protected model, which stays in this process; a failure is kept for the other processes."""
    from pytest_vllm_stage.cluster.service_account_tokens import TokenGrant, open_token

    account = _find_token_account(run, target)
    if not account:
        return None
    cluster = find_cluster()
    grant = TokenGrant(run.config.namespace, account, run.config.profile.models[target.role].token_audience or "")
    opened: list[ServiceAccountToken] = []

    def request() -> str:
        opened.append(open_token(cluster, grant))
        run.journal.event("token", target.role, **asdict(grant), expires_at=opened[0].expires_at)
        return "{}"

    run.shared.ensure(f"token-{target.role}", request)
    return opened[0] if opened else open_token(cluster, grant)


def _find_token_account(run: Run, target: TargetFacts) -> str:
    """The ServiceAccount whose token a model's proxy accepts; empty for a model without such a proxy."""
    from pytest_vllm_stage.stage.protection import name_default_account

    default = name_default_account(target.inference_service) if target.protected else ""
    return run.config.profile.models[target.role].token_account or default


def find_endpoint_targets(run: Run) -> dict[str, Target]:
    """The targets of ``--stage-endpoint``, by role; each server is asked for its model.

    Raises:
        EnvironmentUnusable: a server does not answer ``GET /v1/models``.
        ConfigError: it serves several models and none was named, or it does not serve the named one.
    """
    return {role: _target_at(run, role, url) for role, url in run.config.endpoints.items()}


def _target_at(run: Run, role: str, url: str) -> Target:
    run.journal.event("endpoint", url, model=run.config.model)
    target = Target(role, "", url, None, run.config.api_key, run.config.ca_file)
    model = run.shared.ensure(f"endpoint-{role}", lambda: _model_at(target, run))
    declared = run.config.profile.find_model(role, model)
    return replace(
        target,
        model=model,
        max_num_seqs=declared.max_num_seqs if declared else None,
        dummy_weights=_has_dummy_weights(run, role, model),
        kernels=_find_kernels(run, role, model),
    )


def _has_dummy_weights(run: Run, role: str, model: str) -> bool:
    """Whether the profile declares random weights; the run's record says so with every number."""
    declared = run.config.profile.find_model(role, model)
    if declared is None or not declared.dummy_weights:
        return False
    run.journal.event("dummy_weights", model)
    return True


def _find_kernels(run: Run, role: str, model: str) -> str:
    """Which kernels compute a model, as the profile declares them; empty where it does not."""
    declared = run.config.profile.find_model(role, model)
    return declared.kernels if declared else ""


def _model_at(target: Target, run: Run) -> str:
    """The model to check at a server that may serve several; a simulated engine is recorded in the journal."""
    cards = _served_models(target, run)
    served = list(dict.fromkeys(str(card["id"]) for card in cards))
    wanted, source = run.config.model, "--stage-model"
    declared = run.config.profile.models.get(target.role)
    if declared and (len(served) != 1 or declared.inference_service in served):
        wanted, source = declared.inference_service, f"models.{target.role}.inference_service"
    names = ", ".join(served) or "no model"
    if wanted and wanted not in served:
        raise ConfigError(f"{source}={wanted}: {target.base_url} serves {names}")
    adapters = {str(card["id"]) for card in cards if card.get("parent")}
    whole = [name for name in served if name not in adapters]
    if not wanted and len(whole) != 1:
        raise ConfigError(f"{target.base_url} serves {names}: name the one to check with --stage-model")
    return wanted or whole[0]


def _served_models(target: Target, run: Run) -> list[dict[str, Any]]:
    client = EndpointClient(target)
    try:
        models = client.models()
    except RequestFailed as error:
        raise EnvironmentUnusable(
            f"--stage-endpoint {target.base_url} does not answer: {error.message}",
            hint=error.hint if isinstance(error, CertificateRefused) else f"curl -i {target.base_url}/v1/models",
        ) from None
    finally:
        client.close()
    if is_simulated(models):
        run.journal.event("simulated", target.base_url)
    return models
