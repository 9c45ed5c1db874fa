"""The model endpoints that a run validates."""

from __future__ import annotations

import dataclasses

from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.serving.client import EndpointClient, RequestFailed
from pytest_vllm_stage.serving.target import Target, is_simulated
from pytest_vllm_stage.stage.facts import StageFacts


def of_stage(run: Run, stage: StageFacts) -> dict[str, Target]:
    """The stage's targets by role."""
    return {
        target.role: Target(
            role=target.role,
            model=target.inference_service,
            base_url=target.base_url,
            max_model_len=target.max_model_len,
            api_key=run.config.api_key,
            ca_file=run.config.ca_file,
            unreachable=target.unreachable,
            max_num_seqs=target.max_num_seqs,
        )
        for target in stage.targets
    }


def of_endpoint(run: Run) -> dict[str, Target]:
    """The target of ``--stage-endpoint``; the server is asked for its model unless ``--stage-model`` names it.

    Raises:
        EnvironmentUnusable: the server does not answer ``GET /v1/models``.
        ConfigError: it serves several models and none was named, or it does not serve the named one.
    """
    url = run.config.endpoint or ""
    run.journal.event("endpoint", url, model=run.config.model)
    target = Target("endpoint", "", url, None, run.config.api_key, run.config.ca_file)
    model = run.shared.ensure("endpoint", lambda: _model_at(target, run))
    return {"endpoint": dataclasses.replace(target, model=model)}


def _model_at(target: Target, run: Run) -> str:
    """The model to check at a server that may serve several; a simulated engine is recorded in the journal."""
    wanted, client = run.config.model, EndpointClient(target)
    try:
        models = client.models()
    except RequestFailed as error:
        raise EnvironmentUnusable(
            f"--stage-endpoint {target.base_url} does not answer: {error.message}",
            hint=f"curl -i {target.base_url}/v1/models",
        ) from None
    finally:
        client.close()
    if is_simulated(models):
        run.journal.event("simulated", target.base_url)
    served = [str(model["id"]) for model in models]
    names = ", ".join(served) or "no model"
    if wanted and wanted not in served:
        raise ConfigError(f"--stage-model={wanted}: {target.base_url} serves {names}")
    if not wanted and len(served) != 1:
        raise ConfigError(f"{target.base_url} serves {names}: name the one to check with --stage-model")
    return wanted or served[0]
