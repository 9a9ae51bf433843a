"""How figures look: one width and one set of colors and markers, for paper, a telephone and a dark page."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from textwrap import fill
from typing import Any

from stun_exp.report.figures.labels import space_tick_labels, stack_labels

INK, GRID, FAINT, PAPER = "#1f2530", "#dfe3e8", "#b4bbc4", "#ffffff"
COLORS = ("#4946dc", "#c48300", "#007057", "#9e63a1", "#831308", "#3c92f3", "#7e995c", "#2f2a6b")
"""At 3 : 1 or more on the paper, and told apart with each kind of color blindness."""
IN_THE_DARK = ("#857bff", "#ffe056", "#7afcd7", "#c07b9c", "#dd6e1f", "#a9deff", "#bcd57a", "#67a2e5")
DARK = {INK: "#e4e8ee", GRID: "#333b46", FAINT: "#66707d", PAPER: "#1a1f27"} | dict(
    zip(COLORS, IN_THE_DARK, strict=True)
)
"""What every color but a heat map's is on a dark page."""
MARKERS = (("o", 6), ("s", 5.5), ("^", 6.5), ("D", 5), ("v", 6.5), ("P", 7), ("X", 7), ("*", 9))
"""With sizes that look alike, as many as colors."""
WIDTH = 4.0
"""Inches: a telephone's page, which so shows letters about as large as they are."""
TITLE_LETTERS = 44
"""In a line."""
LEGENDS = ((3, TITLE_LETTERS), (2, TITLE_LETTERS), (1, TITLE_LETTERS), (1, TITLE_LETTERS // 2))
"""Columns and letters in a line, the first that fit: letters differ in width."""


@dataclass(frozen=True)
class Line:
    """The points of one method, with their standard errors where they are known."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float | None]
    style: int
    """Which of the colors and markers: each eight have all of both, and each next eight pair them anew."""


@contextmanager
def style() -> Iterator[None]:
    """Figures drawn and saved in the block look alike, keep text as text, and are the same bytes if drawn again."""
    from matplotlib import rc_context

    settings: dict[str, Any] = {
        "font.sans-serif": ["DejaVu Sans", "Verdana"],
        "font.size": 8.5,
        "axes.titlesize": 7,
        "axes.xmargin": 0.08,
        "axes.ymargin": 0.08,
        "text.parse_math": False,  # a name may hold a dollar
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "errorbar.capsize": 2.5,
        "svg.fonttype": "none",
        "svg.hashsalt": "stun",
    }
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    papered = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    with (
        rc_context(settings | dict.fromkeys(inked, INK) | dict.fromkeys(papered, PAPER)),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it is drawn as a box
        yield


def laid_out(figure: Any) -> None:
    """Gives everything its place, and labels room."""
    if figure.get_layout_engine():
        figure.draw_without_rendering()
    moved = [space_tick_labels(axes) | stack_labels(axes) for axes in figure.axes if axes.get_visible()]
    if figure.get_layout_engine() and any(moved):
        figure.draw_without_rendering()
    figure.set_layout_engine(None)  # or it would be laid out again for each file


def rendered(figure: Any) -> tuple[bytes, str]:
    """A figure as PNG and as SVG."""
    laid_out(figure)
    png, svg = BytesIO(), BytesIO()
    figure.savefig(png, format="png", dpi=160)
    figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return png.getvalue(), svg.getvalue().decode()


def draw_points(axes: Any, line: Line, joined: bool, small: bool = False) -> None:
    look = look_of(line.style) | {"linestyle": "-" if joined else "none", "linewidth": 1.4}
    if small:
        look |= {"markersize": 0.65 * look["markersize"], "capsize": 0}
    axes.errorbar(line.x, line.y, error_bars(line), label=line.name, **look)


def color_and_marker(style: int) -> tuple[int, int]:
    """The places of both; no two of the first 64 styles have the same."""
    return style % len(COLORS), (style + style // len(COLORS)) % len(MARKERS)


def look_of(style: int) -> dict[str, Any]:
    color, number = color_and_marker(style)
    marker, size = MARKERS[number]
    return {
        "color": COLORS[color],
        "marker": marker,
        "markersize": size,
        "markeredgecolor": PAPER,  # a ring, where it lies on another
        "markeredgewidth": 0.6,
        "elinewidth": 0.9,
    }


def error_bars(line: Line) -> list[float] | None:
    return [error or 0.0 for error in line.error] if any(line.error) else None


def add_legend(figure: Any, panels: Sequence[Any]) -> None:
    """One for all panels, below them, so that it covers nothing; the figure grows by it."""
    shown = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels]
    handles = {name: handle for panel in shown for handle, name in panel}
    room = figure.bbox.width - 0.15 * figure.dpi
    for columns, letters in LEGENDS:
        names = [fill(name, letters) for name in handles]
        legend = figure.legend(handles.values(), names, loc="outside lower left", ncols=columns)
        if (columns, letters) == LEGENDS[-1] or legend.get_window_extent().width <= room:
            break
        legend.remove()
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.1 + legend.get_window_extent().height / figure.dpi)
