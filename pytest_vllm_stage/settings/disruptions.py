"""The disruptions by name; without pydantic, as settings are read in every run."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.suggestions import describe_unknown

#: Each disruption, and what it does.
DISRUPTIONS: Mapping[str, str] = {
    "rollout": "a new generation of the InferenceService is rolled out",
    "pod": "the predictor's pod is deleted",
    "engine": "the engine's processes get SIGKILL, as from the kernel when memory runs out",
    "drain": "the pod's node is cordoned, and the pod is evicted",
    "readiness": "the engine's processes are suspended for `unready_s`, so that the pod loses its readiness",
    "publication": "MinIO and the Model Registry are restarted while results are published",
    "scale": "the InferenceService is scaled from 1 replica to 2, and back",
}
ALL = "all"


def parse_disruptions(text: str, source: str) -> tuple[str, ...]:
    """The disruptions that an option's value names, in the order in which they are carried out.

    Raises:
        ConfigError: a name is not that of a disruption.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in (*DISRUPTIONS, ALL):
            raise ConfigError(f"{source}: {describe_unknown(name, (*DISRUPTIONS, ALL), f'disruption {name!r}')}")
    return tuple(name for name in DISRUPTIONS if name in names or ALL in names)
