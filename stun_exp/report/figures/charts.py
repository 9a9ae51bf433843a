"""The kinds of figure: lines, rows, points, maps.

A method has a color and a marker. More methods than there are colors get a panel each, with the others faint behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import isnan, nan
from textwrap import fill
from typing import Any

from stun_exp.report.figures.axes import MOST_DRAWN, Axis, Reference, dashes, draw_references, set_scales
from stun_exp.report.figures.labels import STACKED, in_lines, number_points
from stun_exp.report.figures.style import (
    COLORS,
    FAINT,
    TITLE_LETTERS,
    WIDTH,
    Line,
    add_legend,
    draw_points,
    error_bars,
    look_of,
)

TITLE: dict[str, Any] = {"x": 0.01, "ha": "left", "fontsize": 9.5, "fontweight": "bold"}
PANEL_LETTERS = 18
"""In a line over a small panel."""
PANELS_ACROSS = 3
"""Of small panels."""
TWO_PANELS_LETTERS = 30
"""In a line over one of two panels beside each other."""
BEYOND_SIZE = 6.5
"""Of letters that say what lies beyond an axis."""
ROW_LETTERS = 24
"""In a line of a row's name."""
MOST_WRITTEN = 12
"""Columns of a heat map that still may have numbers, and layers that have a tick each."""


@dataclass(frozen=True)
class Panel:
    """One of several beside each other: a title, lines, and what to compare them with."""

    title: str
    lines: Sequence[Line]
    references: Sequence[Reference] = ()


def lines(
    title: str, drawn: Sequence[Line], x: Axis, y: Axis, references: Sequence[Reference] = (), joined: bool = True
) -> Any:
    """A figure of lines, or of points that are not joined."""
    if len(drawn) > len(COLORS):
        return _small_panels(title, drawn, x, y, references, joined)
    figure, (axes,) = _figure(title, 2.7)
    _draw_lines(axes, drawn, y, joined)
    draw_references(axes, references)
    set_scales(axes, x, y)
    add_legend(figure, [axes])
    return figure


def side_by_side(title: str, panels: Sequence[Panel], x: Axis, y: Axis) -> Any:
    """A figure of lines in two columns of panels, with the same axes and one legend."""
    titles = [in_lines(panel.title, TWO_PANELS_LETTERS) for panel in panels]
    down = -(-len(panels) // 2)
    figure, places = _figure(title, 2.4 * down, 2, down)
    for axes, panel, name in zip(places, panels, titles, strict=False):
        _draw_lines(axes, panel.lines, y, joined=True, small=True)
        draw_references(axes, panel.references)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(name, loc="left")
    for place, axes in enumerate(places[: len(panels)]):
        set_scales(axes, x, replace(y, label="" if place % 2 else y.label))
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    add_legend(figure, places[: len(panels)])
    return figure


def rows(title: str, drawn: Sequence[Line], x: Axis, references: Sequence[Reference] = ()) -> Any:
    """A figure with a row for each line, the first on top, with its one `y` drawn along the row."""
    names, height = _row_names([line.name for line in drawn])
    figure, (axes,) = _figure(title, 1.0 + height * len(drawn))
    for place, line in enumerate(drawn):
        shown = _under(line, x)
        axes.errorbar(shown.y, [place], xerr=error_bars(shown), **look_of(line.style), linestyle="none")
        if shown != line:
            at = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": BEYOND_SIZE}
            axes.annotate(f"\N{RIGHTWARDS ARROW} {_short(line.y[0])}", (shown.y[0], place), **at)
    set_scales(axes, x, Axis("", ticks=dict(enumerate(names))))
    axes.set_ylim(len(drawn) - 0.5, -0.5)
    for reference in references:
        axes.axvline(reference.value, **dashes(reference))
    if references:
        add_legend(figure, [axes])
    return figure


def scatter(
    title: str, panels: Sequence[tuple[Axis, Sequence[Line]]], y: Axis, references: Sequence[Reference] = ()
) -> Any:
    """A figure of single points, the same methods in every panel against another x; many are numbered."""
    figure, places = _figure(title, 2.7, len(panels))
    numbered = len(panels[0][1]) > len(COLORS)
    for axes, (x, points) in zip(places, panels, strict=True):
        named = [replace(p, name=f"{n}: {p.name}") if numbered else p for n, p in enumerate(points, start=1)]
        _draw_lines(axes, named, y, joined=False)
        draw_references(axes, references)
        set_scales(axes, x, y if axes is places[0] else Axis(""))
    add_legend(figure, places)
    if numbered:
        figure.draw_without_rendering()  # the numbers' places depend on those of the points
        for axes, (_, points) in zip(places, panels, strict=True):
            number_points(axes, [(point.x[0], _under(point, y).y[0]) for point in points])
    return figure


def heat(
    title: str,
    grid: Sequence[Sequence[float | None]],
    across: Axis,
    down: Axis,
    measure: str,
    digits: int,
    between: tuple[float, float] | None = None,
) -> Any:
    """A figure of numbers as colors, written into the cells or, where that is too narrow, read from a bar.

    The colors go from the least to the largest number, or `between` two others. What is missing stays blank.
    """
    from matplotlib.ticker import MaxNLocator
    from numpy import array, ma, ndenumerate

    names, height = _row_names(list(down.ticks.values()))
    figure, (axes,) = _figure(title, 0.6 + height * max(len(grid), 2))
    values = ma.masked_invalid(array(grid, dtype=float))
    low, high = between or (None, None)
    picture = axes.imshow(values, aspect="auto", cmap="cividis", interpolation="none", vmin=low, vmax=high)
    written = {
        (row, column): _short(value) if value > MOST_DRAWN else f"{value:.{digits}f}"
        for (row, column), value in ndenumerate(values.filled(nan))
        if not isnan(value)
    }
    longest = max(map(len, written.values()), default=0)
    if len(grid[0]) <= MOST_WRITTEN and longest <= _room_in_a_cell(len(grid[0]), names):
        for (row, column), text in written.items():
            dark = picture.norm(values[row, column]) <= 0.5
            color = "#fefefe" if dark else "#000000"  # not the paper's: it stays white at night
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
    else:
        ticks = MaxNLocator(4, integer=not digits)
        figure.colorbar(picture, ax=axes, label=measure, pad=0.02, ticks=ticks).outline.set_visible(False)
    set_scales(axes, across, replace(down, ticks=dict(zip(down.ticks, names, strict=True))))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _room_in_a_cell(columns: int, names: Sequence[str]) -> float:
    """How many letters a heat map's cell has room for, beside names of rows."""
    longest = max(len(line) for name in names for line in name.splitlines() or [""])
    return (WIDTH - 0.3 - 0.065 * longest) / columns / 0.062  # inches of a letter


def _row_names(names: Sequence[str]) -> tuple[list[str], float]:
    """Names of rows, broken into lines, and the inches of a row that has room for any of them."""
    wrapped = [fill(name, ROW_LETTERS) for name in names]
    return wrapped, 0.21 + 0.14 * max(name.count("\n") for name in wrapped)


def _draw_lines(axes: Any, drawn: Sequence[Line], y: Axis, joined: bool, small: bool = False) -> None:
    """Lines, and above those at the ceiling what their values are."""
    for line in drawn:
        shown = _under(line, y)
        draw_points(axes, shown, joined, small)
        for x, value, place in zip(line.x, line.y, shown.y, strict=True):
            if value != place:
                at = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center", "gid": STACKED}
                text = f"\N{UPWARDS ARROW} {_short(value)}"
                axes.annotate(text, (x, place), **at, color=look_of(line.style)["color"], fontsize=BEYOND_SIZE)


def _under(line: Line, axis: Axis) -> Line:
    """A line with its values at most at the axis' ceiling."""
    top = axis.ceiling
    if top is None or max(line.y) <= top:
        return line
    errors = [None if value > top else error for value, error in zip(line.y, line.error, strict=True)]
    return replace(line, y=[min(value, top) for value in line.y], error=errors)


def _short(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _figure(title: str, height: float, across: int = 1, down: int = 1) -> tuple[Any, list[Any]]:
    """A figure with its title, and its panels row by row."""
    from matplotlib.figure import Figure

    wrapped = fill(title, TITLE_LETTERS)
    size = (WIDTH, height + 0.3 + 0.15 * wrapped.count("\n"))
    figure = Figure(size, layout="constrained")  # drawn by Agg: no window, no global state
    figure.suptitle(wrapped, **TITLE)
    return figure, list(figure.subplots(down, across, squeeze=False, sharey=True).flat)


def _small_panels(
    title: str, drawn: Sequence[Line], x: Axis, y: Axis, references: Sequence[Reference], joined: bool
) -> Any:
    """A panel for each line; laid out by hand, which takes half the time."""
    from matplotlib.figure import Figure

    wrapped, names = fill(title, TITLE_LETTERS), [fill(line.name, PANEL_LETTERS) for line in drawn]
    over_one = 0.13 * (1 + max(name.count("\n") for name in names))
    over_all, below, gap, panel = 0.35 + 0.15 * wrapped.count("\n") + over_one, 0.5, 0.1 + over_one, 0.85  # inches
    down = -(-len(drawn) // PANELS_ACROSS)
    height = over_all + down * (panel + gap) - gap + below
    figure = Figure((WIDTH, height))
    figure.suptitle(wrapped, y=1 - 0.06 / height, va="top", **TITLE)
    places = {"left": 0.13, "right": 0.985, "top": 1 - over_all / height, "bottom": below / height}
    places |= {"wspace": 0.08, "hspace": gap / panel}
    panels = list(figure.subplots(down, PANELS_ACROSS, sharex=True, sharey=True, gridspec_kw=places).flat)
    # One artist, with gaps, is much faster to draw than one for each line.
    faint_x = [*chain.from_iterable((*line.x, nan) for line in drawn)]
    faint_y = [*chain.from_iterable((*_under(line, y).y, nan) for line in drawn)]
    for axes, line, name in zip(panels, drawn, names, strict=False):
        axes.plot(faint_x, faint_y, "-" if joined else ".", color=FAINT, linewidth=0.6, markersize=3, zorder=1)
        _draw_lines(axes, [line], y, joined, small=True)
        draw_references(axes, references)
        axes.set_title(name, loc="left", y=1, pad=3)  # given a y, it is not looked for
        if y.ceiling is not None:
            axes.margins(y=0.35)  # room for what is written above it
    set_scales(panels[0], replace(x, label=""), replace(y, label=""))  # the others share them
    for number, axes in enumerate(panels):
        axes.set_visible(number < len(drawn))
        axes.tick_params(labelbottom=number + PANELS_ACROSS >= len(drawn), labelsize=7)
        if x.scale == "names":
            axes.tick_params(axis="x", labelsize=6)
    figure.supxlabel(x.label, y=0.06 / height, va="bottom", fontsize=8.5)
    figure.supylabel(y.label, x=0.01, fontsize=8.5)
    return figure
