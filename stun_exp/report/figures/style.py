"""How figures look: one width and one set of colors and markers, for paper, a telephone and a dark page."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Axis:
    label: str
    scale: str = "linear"
    """linear | log | symlog (logarithmic, but for a straight piece from 0 to `least`) | names."""
    ticks: dict[float, str] = field(default_factory=dict)
    """Where they are and what they say; if there are none, matplotlib finds some."""
    least: float = 1.0
    """The least number above 0 on a logarithmic axis."""
    most: float = 1.0
    """The largest."""


@dataclass(frozen=True)
class Reference:
    """A value to compare with, drawn dashed."""

    name: str
    value: float


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


def span_a_decade(values: Sequence[float]) -> bool:
    """Whether numbers look better on a logarithmic axis; 0 may be among them."""
    above = [value for value in values if value > 0]
    return min(values) >= 0 and bool(above) and max(above) >= 10 * min(above)


def logarithmic(label: str, values: Sequence[float]) -> Axis:
    """A logarithmic axis for these values, with a straight piece to 0 if that is one of them.

    Where they are so near each other that 1, 2 and 5 would make less than two ticks, the axis is linear.
    """
    above = [value for value in values if value > 0]
    assert min(values) >= 0, values
    has_zero = min(values) == 0
    if not above or (max(above) < 5 * min(above) and not has_zero):
        return Axis(label)
    return Axis(label, "symlog" if has_zero else "log", least=min(above), most=max(above))


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


def draw_reference(axes: Any, reference: Reference | None) -> None:
    if reference:
        across = {"xmin": 0, "xmax": 1, "transform": axes.get_yaxis_transform()}  # as axhline, which asks for limits
        axes.hlines(reference.value, **across, label=reference.name, color=INK, linestyle="--", linewidth=1, zorder=1.5)


def set_scales(axes: Any, x: Axis, y: Axis) -> None:
    from matplotlib.ticker import NullLocator

    for letter, axis, drawn in (("x", x, axes.xaxis), ("y", y, axes.yaxis)):
        if axis.scale == "names":
            axes.margins(**{letter: 0.2})
        elif axis.scale != "linear":
            straight = {"linthresh": axis.least} if axis.scale == "symlog" else {}
            getattr(axes, f"set_{letter}scale")(axis.scale, **straight)
            drawn.set_major_locator(_log_locator(axis, drawn))
            drawn.set_major_formatter("{x:g}")
            drawn.set_minor_locator(NullLocator())
        if axis.ticks:
            drawn.set_ticks(list(axis.ticks), labels=list(axis.ticks.values()))
        drawn.set_label_text(axis.label)


def _log_locator(axis: Axis, drawn: Any) -> Any:
    """Finds a tick at each power of ten and, where these are few, at twice and five times each."""
    from matplotlib.ticker import LogLocator, SymmetricalLogLocator

    parts = (1.0, 2.0, 5.0) if axis.most < 50 * axis.least else (1.0,)
    if axis.scale == "log":
        return LogLocator(subs=parts)
    return SymmetricalLogLocator(drawn.get_transform(), subs=parts)


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
