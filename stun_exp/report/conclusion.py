"""What runs come to, in plain words."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from statistics import mean

from stun_exp.report.data.metrics import headlines, lower_is_better
from stun_exp.report.data.points import Point, points
from stun_exp.report.data.run_settings import RunReport
from stun_exp.report.tables.contests import LEVEL, Contest, PValues, contests

MOST_NAMED = 6
"""Methods or benchmarks that a list names before it counts the rest."""


def conclusion(reports: Sequence[RunReport], p_values: PValues) -> list[str]:
    """A paragraph for each sparsity: what is best, what is within noise of that, and what wins nothing.

    Args:
        reports: Of runs that may stand in one table.
        p_values: Of their paired tests; where there is none, standard errors say what is near the best.
    """
    found, figures = points(reports), headlines(reports)
    pruned = [point for point in found if not point.is_unpruned]
    if not pruned:
        return ["Nothing was pruned: these are figures of the model as it was."]
    if not any(point.measured(key) for point in pruned for key in figures):
        return [_nothing_evaluated(pruned)]
    unpruned = next((point for point in found if point.is_unpruned), None)
    held = contests(pruned, list(figures), p_values)
    told = []
    for sparsity in dict.fromkeys(point.sparsity for point in pruned):
        field = [point for point in pruned if point.sparsity == sparsity]
        here = [contest for contest in held if contest.sparsity == sparsity]
        first, *others = _outcome(field, here, figures)
        sentences = [first, *_level(field, figures, unpruned), *others]
        told.append(f"At {100 * sparsity:g} % sparsity {' '.join(sentences)}")
    return told


def _nothing_evaluated(pruned: Sequence[Point]) -> str:
    shares = ", ".join(f"{100 * share:g} %" for share in dict.fromkeys(point.sparsity for point in pruned))
    return (
        f"No benchmark was run, so nothing is known of quality. Pruned to {shares} sparsity: "
        f"{_listed(list(dict.fromkeys(point.name for point in pruned)))}."
    )


def _outcome(field: Sequence[Point], here: Sequence[Contest], figures: Mapping[str, str]) -> Iterator[str]:
    """Who wins where, who is near, and who is neither."""
    names = dict(zip([point.places for point in field], _names(field), strict=True))
    if len(field) == 1:
        yield f"there is {names[field[0].places]} alone, with nothing to compare it with."
        return
    decided = [contest for contest in here if contest.best]
    if not here:
        yield f"no benchmark has figures of two of the {len(field)} rows, so nothing can be compared."
    elif not decided:
        yield f"no row is above chance on {_listed([figures[contest.key] for contest in here])}."
    else:
        yield f"{_winners(decided, len(here), names, figures)}."
        if lost := [figures[contest.key] for contest in here if not contest.best]:
            yield f"No row is above chance on {_listed(lost)}."
    near = f"Within noise of the best (paired tests on the same items, p at least {LEVEL})"
    yield from _runners_up(near, [(contest, contest.near) for contest in decided], names, figures)
    close = "Within one standard error of the best (no paired test)"
    yield from _runners_up(close, [(contest, contest.close) for contest in decided], names, figures)
    unbeaten = {point.places for contest in decided for point in contest.bold}
    if decided and (losers := [name for places, name in names.items() if places not in unbeaten]):
        yield f"Neither best nor that near on any benchmark: {_listed(losers)}."


def _winners(
    decided: Sequence[Contest], count: int, names: Mapping[tuple[int, ...], str], figures: Mapping[str, str]
) -> str:
    """`A is best on 3 of 4 benchmarks (...), B on ...`, most wins first."""
    wins: dict[str, list[str]] = {}
    for contest in decided:
        tied = len(contest.best) > 1
        for point in contest.best:
            wins.setdefault(names[point.places], []).append(figures[contest.key] + " (tied)" * tied)
    ranked = sorted(wins.items(), key=lambda item: -len(item[1]))
    parts: list[str] = []
    for name, tasks in ranked[:MOST_NAMED]:
        alone = count == len(tasks) and not any(len(contest.best) > 1 for contest in decided)
        every = tasks[0] if count == 1 else "both benchmarks" if count == 2 else f"all {count} benchmarks"
        where = every if alone else f"{len(tasks)} of {count} ({_listed(tasks)})"
        parts.append(f"{name}{'' if parts else ' is best'} on {where}")
    more = len(ranked) - len(parts)
    return "; ".join(parts) + (f"; {more} others on at most {len(ranked[MOST_NAMED][1])}" if more else "")


def _runners_up(
    told: str,
    near: Sequence[tuple[Contest, Sequence[Point]]],
    names: Mapping[tuple[int, ...], str],
    figures: Mapping[str, str],
) -> Iterator[str]:
    """`...: A on x, y; B on z.`; nothing if there are none."""
    by_name: dict[str, list[str]] = {}
    for contest, others in near:
        for point in others:
            by_name.setdefault(names[point.places], []).append(figures[contest.key])
    ranked = sorted(by_name.items(), key=lambda item: -len(item[1]))
    parts = [f"{name} on {_listed(tasks)}" for name, tasks in ranked[:MOST_NAMED]]
    if more := len(ranked) - len(parts):
        parts.append(f"and {more} more")
    if parts:
        yield f"{told}: {'; '.join(parts)}."


def _level(field: Sequence[Point], figures: Mapping[str, str], unpruned: Point | None) -> Iterator[str]:
    """How much is left, where all rows have all accuracies: the highest mean, beside that of the unpruned model."""
    keys = [key for key in figures if not lower_is_better(key)]
    means = [_mean_accuracy(point, keys) for point in field]
    if not keys or None in means:
        return
    top = max(value for value in means if value is not None)
    before = None if unpruned is None else _mean_accuracy(unpruned, keys)
    told = f"{top:.1f} %" + ("" if before is None else f" (unpruned {before:.1f} %)")
    what = "accuracy" if len(keys) == 1 else f"mean accuracy over {len(keys)} benchmarks"
    yield f"Its {what} is {told}." if len(field) == 1 else f"Highest {what}: {_names(field)[means.index(top)]}, {told}."


def _mean_accuracy(point: Point, keys: Sequence[str]) -> float | None:
    """In percent; None if one is not known."""
    found = [point.measured(key) for key in keys]
    values = [100 * measured.value for measured in found if measured is not None and isfinite(measured.value)]
    return mean(values) if values and len(values) == len(keys) else None


def _names(field: Sequence[Point]) -> list[str]:
    """What to call points: where their settings are alike, by the experts that went."""
    labels = [point.label for point in field]
    shares = [100 * point.reports[0]["experts"]["ratio"] for point in field]
    return [
        label if labels.count(label) == 1 else f"{label} with {share:.1f} % of the experts removed"
        for label, share in zip(labels, shares, strict=True)
    ]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
