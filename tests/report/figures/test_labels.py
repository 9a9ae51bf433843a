"""Labels and legends of drawn figures: none is cut, none lies on another."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import pytest

from stun_exp.report.figures import charts
from stun_exp.report.figures import style as drawing
from stun_exp.report.figures.axes import Axis, Reference, below_a_ceiling
from stun_exp.report.figures.labels import STACKED
from stun_exp.report.figures.style import Line


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with drawing.style():
        yield


def line(name: str, x: Sequence[float], y: Sequence[float], style: int = 0) -> Line:
    return Line(name, x, y, [None] * len(x), style)


def overlapping(texts: Sequence[Any]) -> list[tuple[str, str]]:
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [(one, other) for (one, a), (other, b) in combinations(boxes, 2) if a.overlaps(b)]


def tick_labels(axes: Any) -> list[Any]:
    """Those that are seen on the x axis."""
    low, high = axes.get_xlim()
    return [label for label in axes.get_xticklabels() if label.get_visible() and low <= label.get_position()[0] <= high]


@pytest.mark.parametrize("name", ["W" * 12, "W" * 22, "W" * 44, "M " * 40, "i", "a method (kappa=3, linkage=average)"])
def test_a_legend_is_whole_however_wide_its_letters_are(name: str) -> None:
    figure = charts.lines("title", [line(f"{name}{i}", [0, 1], [i, i + 1], i) for i in range(5)], Axis("x"), Axis("y"))
    drawing.laid_out(figure)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert 0 <= box.y0 < box.y1
    assert not box.overlaps(figure.axes[0].get_tightbbox())
    assert figure.axes[0].get_window_extent().height > 0.5 * 2.7 * figure.dpi


def test_short_names_stand_in_three_columns() -> None:
    figure = charts.lines("title", [line(str(i), [0, 1], [i, i + 1], i) for i in range(6)], Axis("x"), Axis("y"))
    drawing.laid_out(figure)
    assert len({round(text.get_window_extent().x0) for text in figure.legends[0].get_texts()}) == 3


@pytest.mark.parametrize(("count", "turned"), [(4, False), (8, True), (20, True)])
def test_names_on_an_axis_are_turned_where_they_would_lie_on_each_other(count: int, turned: bool) -> None:
    names = Axis("setting", "names", {float(i): f"a choice {i}" for i in range(count)})
    figure = charts.lines("title", [line("a", range(count), range(count))], names, Axis("y"))
    drawing.laid_out(figure)
    labels = tick_labels(figure.axes[0])
    assert len(labels) == count
    assert (labels[0].get_rotation() > 0) == turned
    if labels[0].get_rotation() in (0, 90):  # the box of a label that is askew is larger than the label
        assert not overlapping(labels)
    assert all(figure.bbox.y0 <= label.get_window_extent().y0 for label in labels)


def test_long_names_on_an_axis_are_broken_and_leave_room() -> None:
    names = Axis("setting", "names", {float(i): f"the representative that is nearest to all {i}" for i in range(6)})
    figure = charts.lines("title", [line("a", range(6), range(6))], names, Axis("y"))
    drawing.laid_out(figure)
    assert figure.axes[0].get_window_extent().height > 0.3 * 2.7 * figure.dpi


def test_numbers_on_an_axis_are_thinned_where_they_would_lie_on_each_other() -> None:
    """The ticks stay."""
    values = [0.0, 0.5, 0.505, 0.51, 1.0]
    x = Axis("x", ticks={value: str(value) for value in values})
    figure = charts.lines("title", [line("a", values, values)], x, Axis("y"))
    drawing.laid_out(figure)
    assert [label.get_text() for label in tick_labels(figure.axes[0])] == ["0.0", "0.5", "1.0"]
    assert figure.axes[0].get_xticks().tolist() == values


def test_numbers_beside_points_lie_neither_on_each_other_nor_outside() -> None:
    """Near points have numbers of their own, those on one spot share a label."""
    x = [0.03 * i for i in range(9)] + [1.0, 1.0, 1.0]
    y = [0.03 * i for i in range(9)] + [1.0, 1.0, 1.0]
    points = [line(f"method {i}", [x[i]], [y[i]], i) for i in range(12)]
    figure = charts.scatter("title", [(Axis("one"), points), (Axis("other"), points)], Axis("y"))
    drawing.laid_out(figure)
    for axes in figure.axes:
        labels = [text for text in axes.texts if text.get_text()]
        assert [label.get_text() for label in labels] == [*"123456789", "10-12"]
        assert not overlapping(labels)
        assert all(axes.bbox.x0 <= label.get_window_extent().x0 for label in labels)
        assert all(label.get_window_extent().x1 <= axes.bbox.x1 for label in labels)


def exploded(x: Sequence[float]) -> tuple[list[Line], Axis]:
    """Three lines of which two explode at the last two places."""
    large = [line(f"m{i}", x, [1.2, 1.3, 3e5 * (i + 1), 2e7], i) for i in range(2)]
    drawn = [*large, line("tame", x, [1.2, 1.25, 1.4, 1.6], 2)]
    return drawn, below_a_ceiling("perplexity", [y for one in drawn for y in one.y], steep=True)


def test_what_lies_beyond_a_ceiling_has_an_arrow_and_its_number_and_flattens_nothing() -> None:
    drawn, y = exploded([0, 10, 20, 30])
    figure = charts.lines("title", drawn, Axis("x"), y, [Reference("unpruned", 1.1)])
    drawing.laid_out(figure)
    (axes,) = figure.axes
    assert axes.get_ylim()[1] < 3
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["↑ 3.0e5", "↑ 2.0e7", "↑ 6.0e5", "↑ 2.0e7"]
    assert axes.texts[0].get_color() == axes.containers[0].lines[0].get_color()
    assert axes.containers[2].lines[0].get_ydata().tolist() == [1.2, 1.25, 1.4, 1.6]
    assert axes.containers[0].lines[0].get_ydata().tolist() == [1.2, 1.3, y.ceiling, y.ceiling]
    assert max(axes.get_yticks()) < y.ceiling


def test_numbers_beyond_a_ceiling_are_stacked_and_clear_of_titles() -> None:
    drawn, y = exploded([0, 40, 70, 75])
    panels = [charts.Panel(f"model {i}\nnearest experts' weights: cosine 0.95", drawn) for i in range(2)]
    figure = charts.side_by_side("title", panels, Axis("x"), y)
    drawing.laid_out(figure)
    for axes in figure.axes:
        stacked = [text for text in axes.texts if text.get_gid() == STACKED]
        assert len(stacked) == 4
        assert not overlapping([*stacked, axes._left_title])


def test_a_row_beyond_a_ceiling_has_an_arrow_and_its_number() -> None:
    drawn = [line("tame", [0], [1.5]), line("large", [0], [3e5])]
    figure = charts.rows("title", drawn, below_a_ceiling("perplexity", [1.5, 3e5], steep=True))
    drawing.laid_out(figure)
    assert [text.get_text() for text in figure.axes[0].texts] == ["→ 3.0e5"]
    assert figure.axes[0].get_xlim()[1] < 4
    assert figure.axes[0].texts[0].get_window_extent().x1 <= figure.bbox.x1


def test_an_axis_of_large_values_alone_has_no_ceiling() -> None:
    assert below_a_ceiling("perplexity", [2e4, 3e6], steep=True).ceiling is None
    assert below_a_ceiling("perplexity", [1.0, 1e4], steep=True).ceiling is None


@pytest.mark.parametrize("columns", [6, 12])
def test_numbers_in_the_cells_of_a_map_stay_apart_or_are_left_out(columns: int) -> None:
    across = Axis("setting", ticks={float(i): str(i) for i in range(columns)})
    down = Axis("other", ticks={0.0: "a name that takes room", 1.0: "b"})
    grid = [[1.234 + column for column in range(columns)]] * 2
    figure = charts.heat("title", grid, across, down, "perplexity", 3)
    drawing.laid_out(figure)
    texts = figure.axes[0].texts
    assert len(texts) == (12 if columns == 6 else 0)
    assert not overlapping(texts)


def test_panels_beside_each_other_have_one_y_axis_and_one_legend() -> None:
    panels = [
        charts.Panel(f"m{i}", [line("a", [0, 1], [0, 10 * i + 1]), line(f"b{i}", [0, 1], [1, 2], 1)]) for i in (0, 1)
    ]
    figure = charts.side_by_side("title", panels, Axis("x"), Axis("y"))
    drawing.laid_out(figure)
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b0", "b1"]
    assert legend.get_window_extent().x1 <= figure.bbox.x1
