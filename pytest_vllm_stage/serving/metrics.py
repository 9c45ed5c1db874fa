"""The server's own metrics: a strict parser for the Prometheus text format, and the queries that checks need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\\n]|\\["\\n])*)"\s*(?:,|$)')
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.*)\}})?\s+(\S+)(?:\s+-?\d+(?:\.\d+)?)?\s*$")
#: What OpenMetrics allows after a sample: the labels and the value of one observation.
_EXEMPLAR = re.compile(r"\s#\s\{[^{}]*\}\s+\S+(?:\s+\S+)?\s*$")
#: Series to the name that they have in vLLM before 0.10 or 0.11.
_FORMER_NAMES = {
    "vllm:inter_token_latency_seconds": "vllm:time_per_output_token_seconds",
    "vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc",
    "vllm:prefix_cache_queries": "vllm:gpu_prefix_cache_queries",
    "vllm:prefix_cache_hits": "vllm:gpu_prefix_cache_hits",
}
_HISTOGRAM_PARTS = re.compile(r"_(?:bucket|count|sum)$")
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


class BadExposition(ValueError):
    """A line of ``/metrics`` is not in the Prometheus text format."""


class NoSuchSeries(LookupError):
    """The server publishes no series of that name and labels."""


@dataclass(frozen=True, slots=True)
class SeriesValue:
    """One line of the exposition."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram summed over its series.

    Attributes:
        buckets: Upper bound to cumulative count, in ascending order, ending with infinity.
        sum: Sum of the observed values.
        count: Number of observed values.
    """

    buckets: Mapping[float, float]
    sum: float
    count: float


class EngineMetrics:
    """The samples of one scrape, in the server's order."""

    def __init__(self, samples: list[SeriesValue]) -> None:
        self.samples = samples

    def names(self) -> set[str]:
        """The name of every sample."""
        return {sample.name for sample in self.samples}

    def series(self, name: str, **labels: str) -> list[SeriesValue]:
        """The samples of that name that carry all these labels; empty if there are none."""
        wanted = labels.items()
        return [sample for sample in self.samples if sample.name == name and wanted <= sample.labels.items()]

    def value(self, name: str, **labels: str) -> float:
        """The sum over the matching samples; a counter is found without its ``_total``, any series by its former name.

        Raises:
            NoSuchSeries: there is no such sample; a missing series is never read as 0.
        """
        found = self.series(name, **labels) or self.series(f"{name}_total", **labels)
        former = _find_former_name(name)
        if not found and former:
            found = self.series(former, **labels) or self.series(f"{former}_total", **labels)
        if not found:
            near = get_close_matches(name, sorted(self.names()), n=3)
            raise NoSuchSeries(f"no series {name} {labels or ''}; near: {', '.join(near) or 'none'}")
        return sum(sample.value for sample in found)

    def model_names(self) -> set[str]:
        """The models whose series these are."""
        return {sample.labels["model_name"] for sample in self.samples if "model_name" in sample.labels}

    def with_model_name(self, model: str) -> EngineMetrics:
        """The same samples, labelled as of this model."""
        return EngineMetrics(
            [
                replace(sample, labels={**sample.labels, "model_name": model})
                if "model_name" in sample.labels
                else sample
                for sample in self.samples
            ]
        )

    def histogram(self, name: str, **labels: str) -> Histogram:
        """A histogram by its base name.

        Raises:
            NoSuchSeries: there is no such histogram.
        """
        buckets: dict[float, float] = {}
        for sample in self.series(f"{name}_bucket", **labels):
            bound = float(sample.labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + sample.value
        return Histogram(
            dict(sorted(buckets.items())), self.value(f"{name}_sum", **labels), self.value(f"{name}_count", **labels)
        )


def _find_former_name(name: str) -> str:
    part = _HISTOGRAM_PARTS.search(name)
    end = part[0] if part else ""
    former = _FORMER_NAMES.get(name.removesuffix(end))
    return f"{former}{end}" if former else ""


def parse(text: str) -> EngineMetrics:
    """Parse an exposition.

    Raises:
        BadExposition: a line is malformed; the message names it.
    """
    lines = enumerate(text.split("\n"), start=1)
    return EngineMetrics([_sample(line, number) for number, line in lines if line.strip() and not line.startswith("#")])


def _sample(line: str, number: int) -> SeriesValue:
    match = _SAMPLE.match(_EXEMPLAR.sub("", line)) or _SAMPLE.match(line)
    if match is None:
        raise BadExposition(f"line {number} is not a sample: {line[:200]!r}")
    name, labels, value = match.groups()
    try:
        return SeriesValue(name, _labels(labels or ""), float(value))
    except ValueError as error:
        raise BadExposition(f"line {number}: {error}: {line[:200]!r}") from None


def _labels(text: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _LABEL.match(text, position)
        if match is None:
            raise ValueError(f"malformed labels {text[position:][:80]!r}")
        labels[match[1]] = re.sub(r'\\["\\n]', lambda escape: _ESCAPES[escape[0]], match[2])
        position = match.end()
    return labels
