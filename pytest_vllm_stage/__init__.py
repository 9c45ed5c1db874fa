"""A pytest plugin that deploys a vLLM serving stage on Kubernetes, or attaches to an existing one, and verifies it.

What a suite's author needs is here: the types of the fixtures, and the errors. Each name is imported on first use, so
that loading the plugin stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_vllm_stage.benchmark.find_capacity import FoundCapacity
    from pytest_vllm_stage.benchmark.jobs import BenchmarkJob
    from pytest_vllm_stage.benchmark.plans import PlannedStep
    from pytest_vllm_stage.benchmark.regressions import Comparison
    from pytest_vllm_stage.benchmark.steps import StepResult
    from pytest_vllm_stage.cluster.facts import ClusterFacts
    from pytest_vllm_stage.core.errors import (
        ConfigError,
        EnvironmentUnusable,
        Interrupted,
        StageError,
        StageFailure,
        WaitFailed,
    )
    from pytest_vllm_stage.core.skips import does_not_apply
    from pytest_vllm_stage.measurement.samples import Measurement
    from pytest_vllm_stage.measurement.step import LoadStep
    from pytest_vllm_stage.publication.bucket.bucket import Bucket
    from pytest_vllm_stage.publication.publish_run import Publication
    from pytest_vllm_stage.publication.registry.client import RegistryClient
    from pytest_vllm_stage.resilience.carry_out import DisruptionResult
    from pytest_vllm_stage.run.context import Run
    from pytest_vllm_stage.serving.answers import Answer, StreamedAnswer, Usage
    from pytest_vllm_stage.serving.client import EndpointClient
    from pytest_vllm_stage.serving.failures import RequestFailed, StreamBroken
    from pytest_vllm_stage.serving.target import Target
    from pytest_vllm_stage.settings.config import StageConfig
    from pytest_vllm_stage.settings.profile import ModelProfile, Profile
    from pytest_vllm_stage.stage.facts import StageFacts, TargetFacts
    from pytest_vllm_stage.stage.observe.reader import StageReader
    from pytest_vllm_stage.stage.s3 import ObjectStore

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "BenchmarkJob",
    "Bucket",
    "ClusterFacts",
    "Comparison",
    "ConfigError",
    "DisruptionResult",
    "EndpointClient",
    "EnvironmentUnusable",
    "FoundCapacity",
    "Interrupted",
    "LoadStep",
    "Measurement",
    "ModelProfile",
    "ObjectStore",
    "PlannedStep",
    "Profile",
    "Publication",
    "RegistryClient",
    "RequestFailed",
    "Run",
    "StageConfig",
    "StageError",
    "StageFacts",
    "StageFailure",
    "StageReader",
    "StepResult",
    "StreamBroken",
    "StreamedAnswer",
    "Target",
    "TargetFacts",
    "Usage",
    "WaitFailed",
    "does_not_apply",
]

_MODULES = {
    "benchmark.find_capacity": ("FoundCapacity",),
    "benchmark.jobs": ("BenchmarkJob",),
    "benchmark.plans": ("PlannedStep",),
    "benchmark.regressions": ("Comparison",),
    "benchmark.steps": ("StepResult",),
    "cluster.facts": ("ClusterFacts",),
    "core.errors": ("ConfigError", "EnvironmentUnusable", "Interrupted", "StageError", "StageFailure", "WaitFailed"),
    "core.skips": ("does_not_apply",),
    "measurement.samples": ("Measurement",),
    "measurement.step": ("LoadStep",),
    "publication.bucket.bucket": ("Bucket",),
    "publication.publish_run": ("Publication",),
    "publication.registry.client": ("RegistryClient",),
    "resilience.carry_out": ("DisruptionResult",),
    "run.context": ("Run",),
    "serving.answers": ("Answer", "StreamedAnswer", "Usage"),
    "serving.client": ("EndpointClient",),
    "serving.failures": ("RequestFailed", "StreamBroken"),
    "serving.target": ("Target",),
    "settings.config": ("StageConfig",),
    "settings.profile": ("ModelProfile", "Profile"),
    "stage.facts": ("StageFacts", "TargetFacts"),
    "stage.observe.reader": ("StageReader",),
    "stage.s3": ("ObjectStore",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
