"""Figures by matplotlib as inlined SVG: text stays text, colours are the page's variables, numbers are short.

The only module that imports matplotlib; without it `available` is False and the page has its tables alone.
"""

from __future__ import annotations

import importlib.util
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

#: Name of a CSS variable to the colour that stands for it while matplotlib draws.
COLOURS = {
    name: f"#{number:02x}{number:02x}{number:02x}"
    for number, name in enumerate(("fg", "soft", "grid", "good", "bad", "open", "c0", "c1", "c2", "c3"), start=1)
}
SERIES = ("c0", "c1", "c2", "c3")
_TEXT_PX = 11
_ROOT = '<svg xmlns="http://www.w3.org/2000/svg"'
#: Inches: width of a figure, its margins, and the space between two columns of panels.
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _COLUMN_GAP = 10.0, 0.65, 0.12, 0.3, 0.4, 0.75
_MOST_DECADES, _FEWEST_TICKS = 4, 3
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vllm-stage",
    "font.family": "sans-serif",
    "font.size": _TEXT_PX * 0.72,  # points, as the picture is 72 units an inch and shown about 1.4 times as large
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.edgecolor": COLOURS["soft"],
    "axes.labelcolor": COLOURS["fg"],
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.6,
    "text.color": COLOURS["fg"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "xtick.labelcolor": COLOURS["fg"],
    "ytick.labelcolor": COLOURS["fg"],
    "xtick.bottom": False,
    "ytick.left": False,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "path.simplify": False,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
}


@cache
def available() -> bool:
    """Whether charts can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def drawing() -> Iterator[None]:
    """Give whatever is drawn inside the page's style; without matplotlib do nothing."""
    if not available():
        yield
        return
    from matplotlib import rc_context, rcParams

    with rc_context():
        rcParams.update(_STYLE)
        yield


def new_figure(
    height: float,
    *,
    rows: int = 1,
    columns: int = 1,
    row_gap: float = 0.35,
    bottom: float = _BOTTOM,
    width_ratios: Sequence[float] | None = None,
    height_ratios: Sequence[float] | None = None,
) -> tuple[Figure, GridSpec]:
    """An empty figure and its grid of panels; it needs no display and keeps no global state.

    Sizes are in inches. The margins are fixed: to compute them from the texts takes longer than all the drawing.

    Args:
        height: Of the whole figure.
        rows: Number of rows of panels.
        columns: Number of columns of panels.
        row_gap: Space between two rows.
        bottom: Margin under the last row.
        width_ratios: Widths of the columns to each other.
        height_ratios: Heights of the rows to each other.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height))
    panel_width = (_WIDTH - _LEFT - _RIGHT - (columns - 1) * _COLUMN_GAP) / columns
    panel_height = (height - _TOP - bottom - (rows - 1) * row_gap) / rows
    grid = figure.add_gridspec(
        rows, columns, left=_LEFT / _WIDTH, right=1 - _RIGHT / _WIDTH, top=1 - _TOP / height, bottom=bottom / height,
        wspace=_COLUMN_GAP / panel_width, hspace=row_gap / panel_height,
        width_ratios=width_ratios, height_ratios=height_ratios,
    )  # fmt: skip
    return figure, grid


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Label both axes, at the same distance in every panel."""
    width, height = axes.bbox.width / axes.figure.dpi, axes.bbox.height / axes.figure.dpi
    axes.set_xlabel(x)
    axes.xaxis.set_label_coords(0.5, -0.25 / height)
    axes.set_ylabel(y)
    axes.yaxis.set_label_coords(-0.52 / width, 0.5)


def plain_ticks(axis: Axis) -> None:
    """Few ticks with plain numbers on a logarithmic axis: 1, 2 and 5, or even steps where it spans little."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    steps = (1.0, 2.0, 5.0) if len(decades) <= _MOST_DECADES else (1.0,)
    ticks = [value for decade in decades for step in steps if low <= (value := step * 10.0**decade) <= high]
    if len(ticks) < _FEWEST_TICKS:
        ticks = [tick for tick in MaxNLocator(_FEWEST_TICKS + 1).tick_values(low, high) if low <= tick <= high]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())


def draw(figure: Figure, name: str) -> Markup:
    """The figure as SVG for a page; ``name`` keeps the ids of several pictures apart."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(shrink(text.getvalue(), name))  # noqa: S704 - matplotlib escapes the texts that it draws


def points(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, *, size: float = 3.0) -> None:
    """A scatter as one path of dots: a tenth of the size of a marker per point."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not x:
        return
    vertices = [point for pair in zip(x, y, strict=True) for point in (pair, pair)]
    codes = [Path.MOVETO, Path.LINETO] * len(x)
    patch = PathPatch(
        Path(vertices, codes), fill=False, edgecolor=COLOURS[colour], linewidth=size, capstyle="round", alpha=0.65
    )
    axes.add_patch(patch)


def shrink(svg: str, name: str) -> str:
    """Short numbers, the page's colours and font, ids of its own; nothing that is not drawn."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r' xmlns(?::xlink)?="[^"]*"| version="1.1"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'( (?:d|x|y|x1|y1|x2|y2|width|height|transform|points)=")([^"]*)"', _shorten, svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r' clip-path="[^"]*"( style="[^"]*var\(--grid\))', r"\1", svg)
    for default in (f"font-size: {_STYLE['font.size']:g}px; ", "; fill: var(--fg)", "; stroke-linecap: square"):
        svg = svg.replace(default, "")
    svg = re.sub(r"(?<=[a-z]): (?=[^\"<>]*\"[ />])", ":", svg)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'd="([^"]*)"(?=[^>]*linecap:round)', _dots, svg)
    svg = _without_bare_groups(re.sub(r">\s+<", "><", svg).strip())
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)


def make_document(picture: str, title: str) -> str:
    """A picture of the page as a file of its own, on white: with the page's light colours, and a title."""
    style = resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([a-z0-9-]+):(#[0-9a-f]+)", style[: style.index("@media")]))
    text = f"font-family:sans-serif;font-size:{_STYLE['font.size']:g}px;fill:{colours['fg']}"
    start = (
        f"<title>{escape(title)}</title><style>svg{{background:#fff}}text{{{text}}}*{{stroke-linejoin:round}}</style>"
    )
    picture = re.sub(r"var\(--([a-z0-9-]+)\)", lambda match: colours[match[1]], picture)
    head, _, rest = picture.replace(' aria-hidden="true" focusable="false"', "", 1).partition(">")
    return f"{head.replace('<svg', _ROOT, 1)}>{start}{rest}"


def _shorten(match: re.Match[str]) -> str:
    numbers = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), match[2])
    # Points after the first one of a path are lines without an L.
    return f'{match[1]}{" ".join(numbers.split()).replace(" L ", " ")}"'


def _dots(match: re.Match[str]) -> str:
    """Dots are lines of no length, whose ends are round; matplotlib leaves out their second point."""
    return 'd="' + re.sub(r"M (\S+) (\S+)( \1 \2)?", r"M\1 \2h0", match[1]).replace("h0 M", "h0M") + '"'


def _without_bare_groups(svg: str) -> str:
    """Drop groups without attributes, which matplotlib puts around everything."""
    kept: list[bool] = []

    def keep(match: re.Match[str]) -> str:
        if match[0] == "</g>":
            return match[0] if kept.pop() else ""
        if not match[0].endswith("/>"):
            kept.append(match[0] != "<g>")
        return "" if match[0] in ("<g>", "<g/>") else match[0]

    return re.sub(r"<g(?: [^>]*)?/?>|</g>", keep, svg)
