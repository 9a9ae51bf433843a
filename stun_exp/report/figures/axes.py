"""The axes of a figure: scales, ticks and what they are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stun_exp.report.figures.labels import in_lines
from stun_exp.report.figures.style import INK

MOST_DRAWN = 1e4
"""Of a perplexity: what is larger is no language model's any more, and is written."""
NAME_LETTERS = 20
"""In a line of a name on an axis."""
HEADROOM = 0.2
"""Between the largest value that is drawn in its place and the ceiling, in parts of the axis."""


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
    ceiling: float | None = None
    """Where values beyond it are drawn, with an arrow and the number; None if there are none."""


@dataclass(frozen=True)
class Reference:
    """A value to compare with, drawn dashed."""

    name: str
    value: float
    thin: bool = False


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


def below_a_ceiling(label: str, values: Sequence[float], steep: bool) -> Axis:
    """An axis that values of more than `MOST_DRAWN` do not flatten: they are drawn at its ceiling.

    Args:
        steep: Whether to be logarithmic where values span a decade.
    """
    tame = [value for value in values if value <= MOST_DRAWN] or values
    low, high = min(tame), max(tame)
    axis = logarithmic(label, tame) if steep and span_a_decade(tame) else Axis(label)
    if max(values) <= high:
        return axis
    more = high * (high / low) ** HEADROOM if axis.scale == "log" else high + HEADROOM * (high - low or abs(high) or 1)
    return replace(axis, ceiling=more)


def draw_references(axes: Any, references: Sequence[Reference]) -> None:
    across = {"xmin": 0, "xmax": 1, "transform": axes.get_yaxis_transform()}  # as axhline, which asks for limits
    for reference in references:
        axes.hlines(reference.value, **across, **dashes(reference))


def dashes(reference: Reference) -> dict[str, Any]:
    """How it is drawn, and what a legend says."""
    thin = {"linestyle": (0, (2, 3)), "linewidth": 0.8} if reference.thin else {"linestyle": "--", "linewidth": 1}
    return {"label": reference.name, "color": INK, "zorder": 1.5} | thin


def set_scales(axes: Any, x: Axis, y: Axis) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

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
            labels = [in_lines(text, NAME_LETTERS) if axis.scale == "names" else text for text in axis.ticks.values()]
            drawn.set_ticks(list(axis.ticks), labels=labels)
        if axis.ceiling is not None:  # where a tick would say what a point at the ceiling is not
            low, _ = sorted(drawn.get_view_interval())
            drawn.set_major_locator(FixedLocator([t for t in drawn.get_majorticklocs() if low <= t < axis.ceiling]))
        drawn.set_label_text(axis.label)


def _log_locator(axis: Axis, drawn: Any) -> Any:
    """Finds a tick at each power of ten and, where these are few, at twice and five times each."""
    from matplotlib.ticker import LogLocator, SymmetricalLogLocator

    parts = (1.0, 2.0, 5.0) if axis.most < 50 * axis.least else (1.0,)
    if axis.scale == "log":
        return LogLocator(subs=parts)
    return SymmetricalLogLocator(drawn.get_transform(), subs=parts)
