"""One row per request: the measurement itself, which every number is derived from, and its file.

Times are seconds of the monotonic clock since the step's start; `Measurement.started_at` is that start on the wall.
The file is gzipped JSON lines: the step, the samples, the server's readings, and an end line that proves it whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pytest_vllm_stage.measurement.step import LoadStep

#: Every way a request can fail, and what it means.
FAILURES = {
    "connection": "no connection, or it broke before the answer began",
    "timeout": "no whole answer within the request's time limit",
    "http_status": "an HTTP status that is not 200",
    "not_a_stream": "a 200 whose body is not an event stream",
    "protocol": "bytes that are not HTTP, or an event that is not a JSON object",
    "error_in_stream": "an error inside a 200 stream",
    "truncated": "the stream ended without [DONE] or without a finish reason",
    "no_tokens": "a whole answer without one token",
    "prompt_tokens": "the server counted another number of prompt tokens than the plan asked for",
    "output_tokens": "the answer has another number of tokens than the plan asked for",
}

#: The kind of a request that the driver gave up when its step ended early: not a failure of the server's.
ABANDONED = "abandoned"
#: What ends an observation early. Its requests in progress are then abandoned: they would only wait in the backlog.
PAST_CAPACITY = "past capacity"

#: In a measurement's facts where several workers shared the step: their ``count``, those that are ``lost``, each with
#: its ``worker``, ``name`` and ``reason``, and how their clocks differ: ``clock_offset_ms``, ``clock_uncertainty_ms``.
LOAD_WORKERS = "load_workers"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no whole and right answer: a kind out of `FAILURES`, or `ABANDONED`, and the evidence."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.

    Attributes:
        step: Id of the step.
        index: Its place in the schedule, from 0.
        scheduled_s: When it should have been sent; every latency counts from here.
        sent_s: When its bytes had been handed to the kernel; None if it never came to that.
        token_times_s: When each event that carries a token arrived.
        end_s: When the answer, or the failure, was complete, or the request was abandoned.
        expected_prompt_tokens: What the plan asked for.
        expected_output_tokens: What the plan asked for.
        prompt_tokens: The server's own count; None where it gave none.
        output_tokens: The server's own count; None where it gave none.
        cached_tokens: Prompt tokens that the server says it took from its prefix cache; None where it says nothing.
        status: HTTP status; None where no answer began.
        failure: Why it has no whole and right answer; None where it has one.
        response_id: The answer's id; an engine never gives one twice.
        prompt_digest: Short digest of the request's body.
        output_digest: Short digest of the answer's text.
        resent: Its keep-alive connection was dead and it went out once more on a new one.
        every_token_timed: False where the driver keeps only the first and the last token's time (GuideLLM): then
            ``token_times_s`` holds these two, and the gaps between tokens and the stalls are not known.
    """

    step: str
    index: int
    scheduled_s: float
    sent_s: float | None
    token_times_s: tuple[float, ...]
    end_s: float
    expected_prompt_tokens: int
    expected_output_tokens: int
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    status: int | None = None
    failure: Failure | None = None
    response_id: str = ""
    prompt_digest: str = ""
    output_digest: str = ""
    resent: bool = False
    every_token_timed: bool = True

    @property
    def first_token_s(self) -> float | None:
        """When the first token arrived."""
        return self.token_times_s[0] if self.token_times_s else None

    @property
    def abandoned(self) -> bool:
        """Whether the driver gave the request up: how long its answer would have taken is not known."""
        return self.failure is not None and self.failure.kind == ABANDONED

    @property
    def failed(self) -> bool:
        """Whether the server failed to answer it."""
        return self.failure is not None and not self.abandoned

    @property
    def lag_s(self) -> float | None:
        """How much later than scheduled it was sent."""
        return None if self.sent_s is None else self.sent_s - self.scheduled_s

    @property
    def tokens(self) -> int:
        """Tokens of the answer: the server's count, else the events that carried one."""
        return len(self.token_times_s) if self.output_tokens is None else self.output_tokens


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU at one time; None where the exporter does not have the series.

    Attributes:
        gpu: Its number or UUID, as the exporter labels it.
        memory_used_bytes: Memory in use.
        utilization: 0 to 1.
    """

    gpu: str
    memory_used_bytes: float | None = None
    utilization: float | None = None


@dataclass(frozen=True, slots=True)
class ServerReading:
    """One look at the engine's ``/metrics``; None where the series is not there.

    Attributes:
        at_s: When, from the step's start.
        running: Requests in the batch.
        waiting: Requests in the queue.
        kv_cache_usage: Share of the KV cache in use, 0 to 1.
        prefix_cache_queries: Prompt tokens looked up in the prefix cache, since the engine's start.
        prefix_cache_hits: Tokens of them that were found.
        generation_tokens: Tokens generated since the engine's start.
        prompt_tokens: Prompt tokens processed since the engine's start.
        preemptions: Requests pushed out of the batch since the engine's start.
        ttft_sum_s: Sum of the engine's own times to first token, since its start.
        ttft_count: Number of them.
        token_gap_sum_s: Sum of the engine's own times between two tokens, since its start.
        token_gap_count: Number of them.
        gpu_memory_used_bytes: Sum over the GPUs of the exporter; None where none is configured.
        gpu_utilization: Mean over the GPUs of the exporter, 0 to 1; None where none is configured.
        gpus: Each GPU of the exporter.
    """

    at_s: float
    running: float | None = None
    waiting: float | None = None
    kv_cache_usage: float | None = None
    prefix_cache_queries: float | None = None
    prefix_cache_hits: float | None = None
    generation_tokens: float | None = None
    prompt_tokens: float | None = None
    preemptions: float | None = None
    ttft_sum_s: float | None = None
    ttft_count: float | None = None
    token_gap_sum_s: float | None = None
    token_gap_count: float | None = None
    gpu_memory_used_bytes: float | None = None
    gpu_utilization: float | None = None
    gpus: tuple[GpuReading, ...] = ()


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """The step ended before its planned duration, since its verdict was certain.

    Attributes:
        at_s: When the last request was sent.
        requests: How many samples there are.
        reason: What was certain: the verdict, or ``past capacity`` of an observation.
        saved_s: Planned sending time that was not needed.
    """

    at_s: float
    requests: int
    reason: str
    saved_s: float


@dataclass(frozen=True)
class ClientFacts:
    """What the driver knows about itself.

    Attributes:
        driver: Its name and version, which make runs comparable.
        cpu_s: CPU seconds of its process over the step.
        wall_s: Seconds from the step's start to the last answer.
        loop_lag_p99_ms: How late its event loop answered a timer, P99; token times are as late.
        connections: Connections opened.
        resent: Requests that went out once more because their keep-alive connection was dead.
        priority: What the kernel allowed: ``realtime``, ``nice -15`` or ``normal``.
    """

    driver: str
    cpu_s: float = 0.0
    wall_s: float = 0.0
    loop_lag_p99_ms: float | None = None
    connections: int = 0
    resent: int = 0
    priority: str = "normal"


#: In a measurement's facts where its requests went through a port-forward: ``service``, and ``broken`` with the reason
#: why connections broke on the way, empty where none did.
PORT_FORWARD = "port_forward"
#: In a measurement's facts where several engines answer at the address: the server's readings are of one of them.
SEVERAL_ENGINES = "several_engines"
#: In a measurement's facts: how many answered requests GuideLLM's report has no row of.
LOST_ROWS = "lost_rows"
#: In a measurement's facts where an earlier attempt of the step does not count: why it does not.
MEASURED_AGAIN = "measured_again"
#: In a measurement's facts where it is the second one of a step that the first one left undecided: the first one's
#: ``outcome``, and ``why``.
UNDECIDED_BEFORE = "undecided_before"
#: More rows than this share, or than one, are not lost by chance.
_LOST_SHARE = 0.01


def are_too_many_lost(lost: int, sent: int) -> bool:
    """Whether a report lacks too many of a step's requests to stand for the step."""
    return lost > max(1, _LOST_SHARE * sent)


@dataclass(frozen=True)
class Measurement:
    """A step that was carried out: the samples in the schedule's order, and what was observed meanwhile.

    Attributes:
        step: The plan.
        started_at: The step's start in seconds since the epoch.
        samples: One row per request.
        server: The engine's readings, once a second.
        client: The driver's facts about itself.
        early_stop: Set where the step ended before its planned duration.
        facts: What makes runs comparable or labels them: image digest, arguments, GPU, ``simulated``.
    """

    step: LoadStep
    started_at: float
    samples: tuple[Sample, ...]
    client: ClientFacts
    server: tuple[ServerReading, ...] = ()
    early_stop: EarlyStop | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first_outcome(self) -> str:
        """The outcome of the first measurement, where this is the second one of a step; else empty."""
        first = self.facts.get(UNDECIDED_BEFORE)
        return str(first.get("outcome", "")) if isinstance(first, Mapping) else ""

    def header(self) -> dict[str, Any]:
        """Everything but the rows, as plain data."""
        return {
            "step": self.step.to_json(),
            "started_at": self.started_at,
            "client": asdict(self.client),
            "early_stop": asdict(self.early_stop) if self.early_stop else None,
            "facts": dict(self.facts),
        }
