"""Change points in a history, which no single comparison of two runs shows; they are reported, never gated.

E-divisive (Matteson & James, "A nonparametric approach for multiple change point analysis of multivariate data",
JASA 109, 2014): the split with the largest energy distance between its sides is a change point when hardly any shuffled
history has a larger distance; then both sides are searched.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: A side of a split has at least this many runs.
SHORTEST_SIDE = 4
_SHUFFLES = 199
_SIGNIFICANCE = 0.01


@dataclass(frozen=True)
class Change:
    """A change point.

    Attributes:
        at: Index of the first run after it.
        before: Median between the previous change point and this one.
        after: Median between this change point and the next one.
        p: Share of shuffled histories with a larger distance.
    """

    at: int
    before: float
    after: float
    p: float

    @property
    def ratio(self) -> float:
        """``after`` divided by ``before``."""
        return self.after / self.before if self.before else float("inf")


def changes(values: Sequence[float], *, seed: int = 0) -> list[Change]:
    """The change points of a history, in order."""
    dice = random.Random(seed)  # noqa: S311 - a permutation test
    points = sorted(_search(list(values), 0, dice))
    edges = [0, *(at for at, _ in points), len(values)]
    return [
        Change(at, statistics.median(values[edges[i] : at]), statistics.median(values[at : edges[i + 2]]), p)
        for i, (at, p) in enumerate(points)
    ]


def _search(values: list[float], offset: int, dice: random.Random) -> list[tuple[int, float]]:
    if len(values) < 2 * SHORTEST_SIDE:
        return []
    at, energy = _best_split(values)
    larger = 0
    for _ in range(_SHUFFLES):
        shuffled = values[:]
        dice.shuffle(shuffled)
        larger += _best_split(shuffled)[1] >= energy
    p = (larger + 1) / (_SHUFFLES + 1)
    if p > _SIGNIFICANCE:
        return []
    return [*_search(values[:at], offset, dice), (offset + at, p), *_search(values[at:], offset + at, dice)]


def _best_split(values: Sequence[float]) -> tuple[int, float]:
    """The split with the largest scaled energy distance; sums of distances are carried from split to split."""
    n = len(values)
    distance = [[abs(a - b) for b in values] for a in values]
    best = (SHORTEST_SIDE, -1.0)
    within_left = sum(distance[i][j] for i in range(SHORTEST_SIDE) for j in range(i))
    within_right = sum(distance[i][j] for i in range(SHORTEST_SIDE, n) for j in range(SHORTEST_SIDE, i))
    total = sum(distance[i][j] for i in range(n) for j in range(i))
    for at in range(SHORTEST_SIDE, n - SHORTEST_SIDE + 1):
        left, right = at, n - at
        between = total - within_left - within_right
        mean_left = within_left * 2 / (left * (left - 1))
        mean_right = within_right * 2 / (right * (right - 1))
        energy = (2 * between / (left * right) - mean_left - mean_right) * left * right / n
        if energy > best[1]:
            best = (at, energy)
        within_left += sum(distance[at][j] for j in range(at))
        within_right -= sum(distance[at][j] for j in range(at + 1, n))
    return best
