"""A covering array: few rows in which every allowed pair of values of two factors stands at least once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

#: A factor with one of its values.
Choice = tuple[str, str]
Row = dict[str, str]
#: Two choices to the reason why they cannot stand together; empty where they can.
Exclusion = Callable[[Choice, Choice], str]


def pairs_to_cover(factors: Mapping[str, Sequence[str]], exclusion: Exclusion) -> list[tuple[Choice, Choice]]:
    """Every allowed pair of values of two factors, in the factors' order."""
    return [
        ((factor, value), (other, other_value))
        for factor, other in combinations(factors, 2)
        for value in factors[factor]
        for other_value in factors[other]
        if not exclusion((factor, value), (other, other_value))
    ]


def cover_pairs(factors: Mapping[str, Sequence[str]], exclusion: Exclusion) -> list[Row]:
    """Rows that cover every allowed pair; the same factors give the same rows.

    Args:
        factors: Each factor with its values, its neutral value first.
        exclusion: Which pairs cannot stand together.

    Raises:
        ValueError: a pair is allowed, and no row can hold it.
    """
    uncovered = dict.fromkeys(pairs_to_cover(factors, exclusion))
    rows = []
    while uncovered:
        row = _complete(dict(next(iter(uncovered))), factors, exclusion, uncovered)
        rows.append(row)
        for pair in combinations(row.items(), 2):
            uncovered.pop(pair, None)
    return rows


def _complete(
    row: Row,
    factors: Mapping[str, Sequence[str]],
    exclusion: Exclusion,
    uncovered: Mapping[tuple[Choice, Choice], None],
) -> Row:
    """Add to the begun row, factor by factor, the value that covers most; the most restricted factor comes first."""
    row = dict(row)
    while missing := [factor for factor in factors if factor not in row]:
        allowed = {
            factor: [value for value in factors[factor] if _fits(row, (factor, value), exclusion)] for factor in missing
        }
        factor = min(missing, key=lambda one: len(allowed[one]))
        if not allowed[factor]:
            raise ValueError(f"no value of {factor} fits {row}")
        row[factor] = max(allowed[factor], key=lambda value: _gain(row, (factor, value), factors, uncovered))
    return {factor: row[factor] for factor in factors}


def _fits(row: Row, choice: Choice, exclusion: Exclusion) -> bool:
    return not any(exclusion(given, choice) or exclusion(choice, given) for given in row.items())


def _gain(
    row: Row, choice: Choice, factors: Mapping[str, Sequence[str]], uncovered: Mapping[tuple[Choice, Choice], None]
) -> int:
    order = list(factors)
    pairs = (
        (given, choice) if order.index(given[0]) < order.index(choice[0]) else (choice, given) for given in row.items()
    )
    return sum(pair in uncovered for pair in pairs)
