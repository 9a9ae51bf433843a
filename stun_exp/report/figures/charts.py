"""The kinds of figure: lines, rows, points, maps.

A method has a color and a marker. More methods than there are colors get a panel each, with the others faint behind.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from math import nan
from textwrap import fill
from typing import Any

from stun_exp.report.figures.axes import Axis, Reference, draw_reference, set_scales
from stun_exp.report.figures.style import (
    COLORS,
    FAINT,
    INK,
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
ROW_LETTERS = 24
"""In a line of a row's name."""
MOST_WRITTEN = 12
"""Columns of a heat map that still leave room for numbers."""


def lines(
    title: str, drawn: Sequence[Line], x: Axis, y: Axis, reference: Reference | None = None, joined: bool = True
) -> Any:
    """A figure of lines, or of points that are not joined."""
    if len(drawn) > len(COLORS):
        return _small_panels(title, drawn, x, y, reference, joined)
    figure, (axes,) = _figure(title, 2.7)
    for line in drawn:
        draw_points(axes, line, joined)
    draw_reference(axes, reference)
    set_scales(axes, x, y)
    add_legend(figure, axes)
    return figure


def rows(title: str, drawn: Sequence[Line], x: Axis, reference: Reference | None = None) -> Any:
    """A figure with a row for each line, the first on top, with its one `y` drawn along the row."""
    names, height = _row_names([line.name for line in drawn])
    figure, (axes,) = _figure(title, 1.0 + height * len(drawn))
    for place, line in enumerate(drawn):
        axes.errorbar(line.y, [place], xerr=error_bars(line), **look_of(line.style), linestyle="none")
    set_scales(axes, x, Axis("", ticks=dict(enumerate(names))))
    axes.set_ylim(len(drawn) - 0.5, -0.5)
    if reference:
        axes.axvline(reference.value, label=reference.name, color=INK, linestyle="--", linewidth=1)
        add_legend(figure, axes)
    return figure


def scatter(title: str, panels: Sequence[tuple[Axis, Sequence[Line]]], y: Axis) -> Any:
    """A figure of single points, the same methods in every panel against another x; many are numbered."""
    figure, places = _figure(title, 2.7, len(panels))
    for axes, (x, points) in zip(places, panels, strict=True):
        for number, point in enumerate(points, start=1):
            numbered = len(points) > len(COLORS)
            draw_points(axes, replace(point, name=f"{number}: {point.name}") if numbered else point, joined=False)
            if numbered:
                at = (point.x[0], point.y[0])
                axes.annotate(str(number), at, xytext=(3, 3), textcoords="offset points", fontsize=7)
        set_scales(axes, x, y if axes is places[0] else Axis(""))
    add_legend(figure, places[0])
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
    from numpy import array, ma

    names, height = _row_names(list(down.ticks.values()))
    figure, (axes,) = _figure(title, 0.6 + height * max(len(grid), 2))
    values = ma.masked_invalid(array(grid, dtype=float))
    low, high = between or (None, None)
    picture = axes.imshow(values, aspect="auto", cmap="cividis", interpolation="none", vmin=low, vmax=high)
    if len(grid[0]) <= MOST_WRITTEN:
        for row, column in zip(*(~ma.getmaskarray(values)).nonzero(), strict=True):
            value = values[row, column]
            color = "#000000" if picture.norm(value) > 0.5 else "#fefefe"  # not the paper's: it stays white at night
            axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=color, fontsize=7)
    else:
        ticks = MaxNLocator(4, integer=not digits)
        figure.colorbar(picture, ax=axes, label=measure, pad=0.02, ticks=ticks).outline.set_visible(False)
    set_scales(axes, across, replace(down, ticks=dict(zip(down.ticks, names, strict=True))))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _row_names(names: Sequence[str]) -> tuple[list[str], float]:
    """Names of rows, broken into lines, and the inches of a row that has room for any of them."""
    wrapped = [fill(name, ROW_LETTERS) for name in names]
    return wrapped, 0.21 + 0.14 * max(name.count("\n") for name in wrapped)


def _figure(title: str, height: float, across: int = 1) -> tuple[Any, list[Any]]:
    """A figure with its title, and its panels in a row."""
    from matplotlib.figure import Figure

    wrapped = fill(title, TITLE_LETTERS)
    size = (WIDTH, height + 0.3 + 0.15 * wrapped.count("\n"))
    figure = Figure(size, layout="constrained")  # drawn by Agg: no window, no global state
    figure.suptitle(wrapped, **TITLE)
    return figure, list(figure.subplots(1, across, squeeze=False, sharey=True).flat)


def _small_panels(
    title: str, drawn: Sequence[Line], x: Axis, y: Axis, reference: Reference | None, joined: bool
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
    faint_y = [*chain.from_iterable((*line.y, nan) for line in drawn)]
    for axes, line, name in zip(panels, drawn, names, strict=False):
        axes.plot(faint_x, faint_y, "-" if joined else ".", color=FAINT, linewidth=0.6, markersize=3, zorder=1)
        draw_points(axes, line, joined, small=True)
        draw_reference(axes, reference)
        axes.set_title(name, loc="left", y=1, pad=3)  # given a y, it is not looked for
    set_scales(panels[0], replace(x, label=""), replace(y, label=""))  # the others share them
    for number, axes in enumerate(panels):
        axes.set_visible(number < len(drawn))
        axes.tick_params(labelbottom=number + PANELS_ACROSS >= len(drawn), labelsize=7)
        if x.scale == "names":
            axes.tick_params(axis="x", labelsize=6)
    figure.supxlabel(x.label, y=0.06 / height, va="bottom", fontsize=8.5)
    figure.supylabel(y.label, x=0.01, fontsize=8.5)
    return figure
