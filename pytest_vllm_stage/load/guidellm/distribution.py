"""Distributions in GuideLLM's form: nearest-rank percentiles of the answered requests, without the others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pytest_vllm_stage.measurement.samples import Sample

#: Percentile name to its share in thousandths, so that ranks are computed in integers.
_PERCENTILES = {
    "p001": 1,
    "p01": 10,
    "p05": 50,
    "p10": 100,
    "p25": 250,
    "p50": 500,
    "p75": 750,
    "p90": 900,
    "p95": 950,
    "p99": 990,
    "p999": 999,
}

#: The values that a sample adds to a distribution; may be empty.
ValuesOf = Callable[[Sample], Iterable[float]]


def breakdown(values_of: ValuesOf, groups: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """One distribution per status, and one over all; in GuideLLM a count of 0 means that there is none."""
    found = {status: [value for sample in group for value in values_of(sample)] for status, group in groups.items()}
    total = summary([value for values in found.values() for value in values])
    return {**{status: summary(values) for status, values in found.items()}, "total": total}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """The statistics of values."""
    ordered = sorted(values)
    n = len(ordered)
    mean = statistics.fmean(ordered) if n else 0.0
    deviation = statistics.pstdev(ordered, mean) if n else 0.0
    percentiles: Mapping[str, float] = {
        name: ordered[max(1, math.ceil(share * n / 1000)) - 1] if n else 0.0 for name, share in _PERCENTILES.items()
    }
    return {
        "mean": mean,
        "median": percentiles["p50"],
        "mode": statistics.mode(ordered) if n else 0.0,
        "variance": deviation**2,
        "std_dev": deviation,
        "min": ordered[0] if n else 0.0,
        "max": ordered[-1] if n else 0.0,
        "count": n,
        "total_sum": math.fsum(ordered),
        "percentiles": percentiles,
    }


def steady(value: float) -> dict[str, Any]:
    """A rate over the whole step, of which no distribution is drawn: every statistic is the rate itself."""
    one = summary([value])
    return {"successful": one, "errored": summary([]), "incomplete": summary([]), "total": one}
