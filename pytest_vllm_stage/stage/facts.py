"""What the layers above know of a stage: plain data that crosses processes as JSON. It holds no secret."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

#: Carried by the objects of a simulated engine, and by its pods, with the value ``true``.
SIMULATED_LABEL = "vllm-stage/simulated"


@dataclass(frozen=True)
class TargetFacts:
    """One target model of a stage.

    Attributes:
        role: Its role in the profile, for example ``quantized``.
        inference_service: Name of the InferenceService, which is the served model name.
        base_url: Root of its server, without ``/v1``; empty where it is not reachable.
        max_model_len: Context length in tokens as the manifests declare it; None where they do not declare it.
        unreachable: Why no request can be sent to it; empty where one can.
        max_num_seqs: Requests that its engine runs at once, as the manifests declare it; None where they do not say.
        protected: Its InferenceService asks for a proxy that reviews the token of each request.
    """

    role: str
    inference_service: str
    base_url: str
    max_model_len: int | None = None
    unreachable: str = ""
    max_num_seqs: int | None = None
    protected: bool = False


@dataclass(frozen=True)
class StageFacts:
    """A stage that exists.

    Attributes:
        namespace: Its namespace.
        run_id: The run that deployed it; empty when it existed before.
        owned: This run deployed it.
        targets: Its target models.
        minio_url: Root of MinIO's S3 API as reached from here; None where the stage has none.
        deployed_at: Seconds since the epoch; None when it existed before.
        simulated: A simulated engine serves at least one target: none of its numbers is a model's, and none may be
            published as one.
        kernels: Which kernels compute its models, as recorded references name them; empty where the run does not know.
    """

    namespace: str
    run_id: str
    owned: bool
    targets: tuple[TargetFacts, ...]
    minio_url: str | None = None
    deployed_at: float | None = None
    simulated: bool = False
    kernels: str = ""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> StageFacts:
        data = json.loads(text)
        return cls(**{**data, "targets": tuple(TargetFacts(**target) for target in data["targets"])})
