"""Where a served model is, and what is declared of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.core.secret import Secret

#: How the simulated engine names itself in its list of models and in its ``server`` header.
SIMULATED_ENGINE = "vllm-stage-sim"
#: In a measurement's facts where the weights were random.
DUMMY_WEIGHTS = "dummy_weights"


@dataclass(frozen=True)
class Target:
    """One served model behind an OpenAI-compatible API.

    Attributes:
        role: What the model is in its stage (``quantized``, ``full``), or ``endpoint`` for a plain server.
        model: The served model name, sent as ``model``.
        base_url: Root of the server, without ``/v1``.
        max_model_len: The declared context length in tokens; None where nothing declares it.
        api_key: Sent as bearer token; None where the server asks for none.
        unreachable: Why no request is sent to it; empty where one can be.
        ca_file: PEM file of the authorities trusted to sign the server's certificate; None trusts the system's.
        max_num_seqs: Requests that the engine runs at once, as declared; None where nothing declares it.
        kernels: Which kernels compute it, as recorded references name them; empty where the run does not know.
        token_account: The ServiceAccount whose token a proxy in front of it accepts; empty without such a proxy.
        dummy_weights: The profile declares that it is served with random weights.
    """

    role: str
    model: str
    base_url: str
    max_model_len: int | None = None
    api_key: Secret | None = None
    ca_file: str | None = None
    unreachable: str = ""
    max_num_seqs: int | None = None
    dummy_weights: bool = False
    token_account: str = ""
    kernels: str = ""


def is_simulated(models: list[dict[str, Any]]) -> bool:
    """The server is the simulated engine, as its list of models says."""
    return any(model.get("owned_by") == SIMULATED_ENGINE for model in models)
