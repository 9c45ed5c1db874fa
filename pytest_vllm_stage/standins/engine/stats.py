"""The engine's counters and histograms, published under vLLM's names."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_vllm_stage.standins.engine.engine import Engine, Job

FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
_TTFT_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
_ITL_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_LATENCY_BOUNDS = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0)


class BucketHistogram:
    """Counts of values by upper bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        totals = list(accumulate(self._counts))
        for bound, total in zip([*map(str, self._bounds), "+Inf"], totals, strict=True):
            yield f'{name}_bucket{{{labels},le="{bound}"}} {float(total)}'
        yield f"{name}_count{{{labels}}} {float(totals[-1])}"
        yield f"{name}_sum{{{labels}}} {self._sum}"


class Stats:
    """What happened since the start."""

    def __init__(self) -> None:
        self._started_at = time.time()
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self.success = dict.fromkeys(FINISH_REASONS, 0)
        self._histograms = {
            "vllm:time_to_first_token_seconds": (ttft := BucketHistogram(_TTFT_BOUNDS)),
            "vllm:inter_token_latency_seconds": (itl := BucketHistogram(_ITL_BOUNDS)),
            "vllm:e2e_request_latency_seconds": (e2e := BucketHistogram(_LATENCY_BOUNDS)),
            "vllm:request_queue_time_seconds": (queue := BucketHistogram(_LATENCY_BOUNDS)),
        }
        self._ttft, self._itl, self._e2e, self._queue = ttft, itl, e2e, queue

    def finish(self, job: Job) -> None:
        """Take the times of a job that ended."""
        self.success[job.finish_reason] += 1
        if job.finish_reason == "abort":
            return
        self._queue.observe(job.admitted_at - job.received_at)
        self._ttft.observe(job.token_times[0] - job.received_at)
        self._e2e.observe(job.finished_at - job.received_at)
        for earlier, later in pairwise(job.token_times):
            self._itl.observe(later - earlier)

    def exposition(self, engine: Engine) -> str:
        """The text of ``/metrics``."""
        labels = f'engine="0",model_name="{engine.settings.model}"'
        size = engine.settings.block_size
        lines = [
            "# TYPE vllm:cache_config_info gauge",
            f'vllm:cache_config_info{{engine="0",enable_prefix_caching="True",block_size="{size}"}} 1.0',
        ]
        for name, value in (
            ("vllm:num_requests_running", engine.running),
            ("vllm:num_requests_waiting", engine.waiting),
            ("vllm:kv_cache_usage_perc", engine.kv_cache_usage),
        ):
            lines += [f"# TYPE {name} gauge", f"{name}{{{labels}}} {float(value)}"]
        for name, total in (
            ("vllm:prefix_cache_queries_total", self.prefix_cache_queries),
            ("vllm:prefix_cache_hits_total", self.prefix_cache_hits),
            ("vllm:prompt_tokens_total", self.prompt_tokens),
            ("vllm:generation_tokens_total", self.generation_tokens),
        ):
            lines += [f"# TYPE {name} counter", f"{name}{{{labels}}} {float(total)}"]
        lines.append("# TYPE vllm:request_success_total counter")
        for reason, count in self.success.items():
            lines.append(f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} {float(count)}')
        for name, histogram in self._histograms.items():
            lines += [f"# TYPE {name} histogram", *histogram.lines(name, labels)]
        lines += [
            "# TYPE process_start_time_seconds gauge",
            f"process_start_time_seconds {self._started_at}",
            "# HELP vllm_stage_sim_lateness_max_seconds How late a token left at most: the simulator's own error.",
            "# TYPE vllm_stage_sim_lateness_max_seconds gauge",
            f"vllm_stage_sim_lateness_max_seconds {engine.lateness_max_s}",
        ]
        return "\n".join(lines) + "\n"
