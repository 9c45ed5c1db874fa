"""A chart with the table behind it: without matplotlib the table is what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Chart:
    """One figure of the page.

    Attributes:
        title: What it shows.
        caption: How to read it, and what is left out.
        headers: Of its table.
        rows: Of its table, as texts.
        svg: The inlined picture; None where matplotlib is not installed.
    """

    title: str
    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    svg: Markup | None = None


@dataclass(frozen=True)
class Part:
    """A collapsible part of a section: one load step."""

    title: str
    outcome: str
    sign: str
    lines: Sequence[str]
    charts: Sequence[Chart]
    open: bool = False


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    note: str = ""
    charts: Sequence[Chart] = field(default=())
    parts: Sequence[Part] = field(default=())
    lines: Sequence[str] = field(default=())
