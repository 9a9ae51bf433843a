"""How figures look: one width and one set of colors and markers, for paper, a telephone and a dark page."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from textwrap import fill
from typing import Any

INK, GRID, FAINT, PAPER = "#1f2530", "#dfe3e8", "#b4bbc4", "#ffffff"
COLORS = ("#4946dc", "#c48300", "#007057", "#9e63a1", "#831308", "#3c92f3", "#7e995c", "#2f2a6b")
"""At 3 : 1 or more on the paper, and told apart with each kind of color blindness."""
IN_THE_DARK = ("#857bff", "#ffe056", "#7afcd7", "#c07b9c", "#dd6e1f", "#a9deff", "#bcd57a", "#67a2e5")
DARK = {INK: "#e4e8ee", GRID: "#333b46", FAINT: "#66707d", PAPER: "#1a1f27"} | dict(
    zip(COLORS, IN_THE_DARK, strict=True)
)
"""What every color but a heat map's is on a dark page."""
MARKERS = (("o", 6), ("s", 5.5), ("^", 6.5), ("D", 5), ("v", 6.5), ("P", 7), ("X", 7), ("*", 9))
"""With sizes that look alike."""
WIDTH = 4.0
"""Inches: a telephone's page, which so shows letters about as large as they are."""
TITLE_LETTERS = 44
"""In a line."""


@dataclass(frozen=True)
class Line:
    """The points of one method, with their standard errors where they are known."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float | None]
    style: int
    """Which of the colors and markers."""


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
    with rc_context(settings | dict.fromkeys(inked, INK) | dict.fromkeys(papered, PAPER)):
        yield


def rendered(figure: Any) -> tuple[bytes, str]:
    """A figure as PNG and as SVG."""
    if figure.get_layout_engine():
        figure.draw_without_rendering()
        figure.set_layout_engine(None)  # it is laid out; or it would be again for each file
    png, svg = BytesIO(), BytesIO()
    figure.savefig(png, format="png", dpi=160)
    figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return png.getvalue(), svg.getvalue().decode()


def draw_points(axes: Any, line: Line, joined: bool, small: bool = False) -> None:
    look = look_of(line.style) | {"linestyle": "-" if joined else "none", "linewidth": 1.4}
    if small:
        look |= {"markersize": 0.65 * look["markersize"], "capsize": 0}
    axes.errorbar(line.x, line.y, error_bars(line), label=line.name, **look)


def look_of(style: int) -> dict[str, Any]:
    marker, size = MARKERS[style % len(MARKERS)]
    return {
        "color": COLORS[style % len(COLORS)],
        "marker": marker,
        "markersize": size,
        "markeredgecolor": PAPER,  # a ring, where it lies on another
        "markeredgewidth": 0.6,
        "elinewidth": 0.9,
    }


def error_bars(line: Line) -> list[float] | None:
    return [error or 0.0 for error in line.error] if any(line.error) else None


def add_legend(figure: Any, axes: Any) -> None:
    """Below the panels, so that it covers nothing; the figure grows by it."""
    handles, names = axes.get_legend_handles_labels()
    longest = max(map(len, names))
    columns = 3 if longest <= 12 else 2 if longest <= 22 else 1
    wrapped = [fill(name, TITLE_LETTERS) for name in names]
    width, height = figure.get_size_inches()
    rows = -(-len(names) // columns) + sum(name.count("\n") for name in wrapped)
    figure.set_size_inches(width, height + 0.1 + 0.16 * rows)
    figure.legend(handles, wrapped, loc="outside lower left", ncols=columns)
