"""The faults that the simulated engine knows; importing this registers them all."""

from pytest_vllm_stage.standins.engine.catalogue import (
    answers,
    combinations,
    parameters,
    prompts,
    protocol,
    service,
    sharing,
    streams,
    structure,
    timing,
)

__all__ = [
    "answers",
    "combinations",
    "parameters",
    "prompts",
    "protocol",
    "service",
    "sharing",
    "streams",
    "structure",
    "timing",
]
