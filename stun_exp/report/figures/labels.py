"""Labels that do not lie on each other: of ticks, and beside points."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import cos, dist, pi, sin
from textwrap import fill
from typing import Any

STACKED = "stacked"
"""Marks labels that are to be raised above each other."""
CLEARANCE = 2.0
"""Pixels between two labels of ticks."""
SPOT_LETTERS = 14
"""In a line of the numbers of points on one spot."""
RINGS = (4.0, 10.0, 16.0, 23.0)
"""How far from its point a label may stand, in points; from the second on, a line leads to it."""


def in_lines(text: str, letters: int) -> str:
    """Text in lines of at most so many letters; its own lines stay apart."""
    return "\n".join(fill(line, letters) for line in text.splitlines())


def space_tick_labels(axes: Any) -> bool:
    """Whether labels on the x axis were moved or left out, because they would lie on each other.

    Of numbers some are left out, of words all are turned.
    """
    labels = [label for label in axes.get_xticklabels() if label.get_visible() and label.get_text()]
    places = sorted(
        ((label.get_window_extent(), label) for label in labels), key=lambda place: place[0].x0 + place[0].x1
    )
    if all(after.x0 >= before.x1 + CLEARANCE for (before, _), (after, _) in pairwise(places)):
        return False
    if not all(_is_number(label.get_text()) for label in labels):
        nearest = min(after.x1 - before.x1 for (before, _), (after, _) in pairwise(places))
        turned = 30 if nearest * sin(pi / 6) > max(box.height for box, _ in places) else 90
        for label in labels:
            label.set(rotation=turned, ha="right", va="center", rotation_mode="anchor")
        return True
    end = places[0][0].x0 - CLEARANCE
    for box, label in places:
        if box.x0 >= end + CLEARANCE:
            end = box.x1
        else:
            label.set_visible(False)
    return True


def stack_labels(axes: Any) -> bool:
    """Whether labels that are to be stacked lay on each other or on the title, and were raised, or the title was."""
    placed: list[Any] = []
    raised = False
    for label in sorted((text for text in axes.texts if text.get_gid() == STACKED), key=lambda text: text.xy[0]):
        while any(label.get_window_extent().overlaps(box) for box in placed):
            right, up = label.get_position()
            label.set_position((right, up + 1))
            raised = True
        placed.append(label.get_window_extent())
    over = max((box.y1 for box in placed), default=0.0) - axes.bbox.y1
    if over > 0 and (title := axes.get_title(loc="left")):
        axes.set_title(title, loc="left", pad=72 * over / axes.figure.dpi + 3)
        raised = True
    return raised


def number_points(axes: Any, points: Sequence[tuple[float, float]]) -> None:
    """Writes 1, 2, ... beside points of a figure that has its layout, none on another or on a point.

    Points on one spot have one label.
    """
    scale = axes.figure.dpi / 72
    spots = [(float(x), float(y)) for x, y in map(axes.transData.transform, points)]
    boxes = [_around(x, y, 3 * scale, 3 * scale) for x, y in spots]
    for numbers in _on_one_spot(spots, 2 * scale):
        point, (x, y) = points[numbers[0]], spots[numbers[0]]
        at: dict[str, Any] = {"xy": point, "textcoords": "offset points"}
        text = fill(_ranges([number + 1 for number in numbers]), SPOT_LETTERS)
        label = axes.annotate(text, **at, xytext=(0, 0), ha="center", va="center", fontsize=7)
        label.set_in_layout(False)
        size = label.get_window_extent()
        half = (size.width / 2, size.height / 2)
        candidates = [
            (ring, right, up, _around(x + right, y + up, *half))
            for ring, right, up in _offsets(half[0], half[1], scale)
        ]
        ring, right, up, box = min(candidates, key=lambda one: _collisions(one[3], boxes) + _leaves(one[3], axes.bbox))
        offset = (right / scale, up / scale)
        boxes.append(box)
        label.set_position(offset)
        if ring:
            line = {"arrowstyle": "-", "linewidth": 0.4, "shrinkA": 4, "shrinkB": 2, "color": label.get_color()}
            axes.annotate("", **at, xytext=offset, arrowprops=line).set_in_layout(False)


def _on_one_spot(spots: Sequence[tuple[float, float]], near: float) -> list[list[int]]:
    groups: list[list[int]] = []
    for number, spot in enumerate(spots):
        group = next((group for group in groups if dist(spots[group[0]], spot) < near), None)
        if group is None:
            groups.append([number])
        else:
            group.append(number)
    return groups


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers in few letters: 1-3, 7."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found)


Box = tuple[float, float, float, float]


def _offsets(half_width: float, half_height: float, scale: float) -> Iterator[tuple[int, float, float]]:
    """(Ring, pixels to the right, pixels up) of a label's middle, the nearest to its point first."""
    for ring, radius in enumerate(RINGS):
        for eighth in (2, 1, 3, 0, 4, 6, 7, 5):  # above it first
            right, up = cos(eighth * pi / 4), sin(eighth * pi / 4)
            yield ring, right * (radius * scale + half_width), up * (radius * scale + half_height)


def _around(x: float, y: float, half_width: float, half_height: float) -> Box:
    return x - half_width, y - half_height, x + half_width, y + half_height


def _collisions(one: Box, others: Sequence[Box]) -> int:
    return sum(one[0] < x1 and x0 < one[2] and one[1] < y1 and y0 < one[3] for x0, y0, x1, y1 in others)


def _leaves(one: Box, inside: Any) -> bool:
    return not (inside.x0 <= one[0] and one[2] <= inside.x1 and inside.y0 <= one[1] and one[3] <= inside.y1)


def _is_number(text: str) -> bool:
    try:
        float(text.replace("\N{MINUS SIGN}", "-"))
    except ValueError:
        return False
    return True
