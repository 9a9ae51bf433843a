"""What goes of a whole model at one threshold: parts that go together, or rows and columns by themselves."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.moe.coupled import Lines, Sizes

Kind = Literal["units", "groups"]


class PartCosts(NamedTuple):
    """What it costs to remove each part of a layer."""

    layer: int
    sizes: "Sizes"
    weights: int
    """Of all matrices of the layer."""
    units: "Tensor"
    groups: "Tensor | None"


class LineCosts(NamedTuple):
    """What it costs to remove each row and column of a layer's matrices; NaN for those that are zero already."""

    layer: int
    weights: int
    """Of all matrices of the layer."""
    rows: "dict[str, Tensor]"
    columns: "dict[str, Tensor]"


def cheapest_parts(
    findings: Sequence[PartCosts], wanted: float, fills: bool
) -> tuple[list[dict[Kind, list[int]]], float | None]:
    """(What goes of each layer, the highest cost of a weight that goes) if so many weights are to go.

    The parts with the lowest cost for each of their weights go, as far as that comes nearest to `wanted`; one of each
    kind stays in a layer. With `fills` a part that is too large is passed over for those after it; else it waits, with
    those after it, for the next shot.
    """
    left: list[dict[Kind, int]] = [{"units": found.sizes.units, "groups": found.sizes.groups} for found in findings]
    chosen: list[dict[Kind, list[int]]] = [{"units": [], "groups": []} for _ in findings]
    taken, threshold = 0, None
    for cost, place, kind, at, weights in sorted(_parts(findings)):
        if left[place][kind] == 1:
            continue
        if taken + weights / 2 > wanted:
            if not fills:
                break
            continue
        left[place][kind] -= 1
        chosen[place][kind].append(at)
        taken += weights
        threshold = cost
    return chosen, threshold


def _parts(findings: Sequence[PartCosts]) -> Iterator[tuple[float, int, Kind, int, int]]:
    """(Cost of each of its weights, place of its layer, kind, its own place, weights) of every part."""
    for place, found in enumerate(findings):
        for at, cost in enumerate(found.units.tolist()):
            yield cost / found.sizes.unit_weights, place, "units", at, found.sizes.unit_weights
        for at, cost in enumerate(found.groups.tolist() if found.groups is not None else ()):
            yield cost / found.sizes.group_weights, place, "groups", at, found.sizes.group_weights


def cheapest_lines(findings: Sequence[LineCosts], wanted: float) -> "tuple[list[dict[str, Lines]], float | None, int]":
    """(What goes of each layer's matrices, the highest cost of a line that goes, weights gone) for so many weights.

    One threshold for rows and columns alike, as LLM-Surgeon has it. A matrix of r rows and c columns that are left
    loses c weights with a row, and r with a column; what is zero already counts as gone.
    """
    from torch import isnan

    left: dict[tuple[int, str], list[int]] = {}
    lines, taken = [], 0
    for place, found in enumerate(findings):
        for path in found.rows:
            both = found.rows[path], found.columns[path]
            alive = [int((~isnan(costs)).sum()) for costs in both]
            taken += len(both[0]) * len(both[1]) - alive[0] * alive[1]
            left[place, path] = alive
            for side, costs in enumerate(both):
                lines += [(c, place, path, side, at) for at, c in enumerate(costs.tolist()) if c == c]
    gone: dict[tuple[int, str], tuple[list[int], list[int]]] = {key: ([], []) for key in left}
    threshold = None
    for cost, place, path, side, at in sorted(lines):
        alive = left[place, path]
        if alive[side] == 1:
            continue
        if taken + alive[1 - side] / 2 > wanted:
            break
        taken += alive[1 - side]
        alive[side] -= 1
        gone[place, path][side].append(at)
        threshold = cost
    return _by_layer(findings, gone), threshold, taken


def _by_layer(
    findings: Sequence[LineCosts], gone: dict[tuple[int, str], tuple[list[int], list[int]]]
) -> "list[dict[str, Lines]]":
    from stun_exp.moe.coupled import Lines

    return [
        {path: Lines(*gone[place, path]) for path in found.rows if any(gone[place, path])}
        for place, found in enumerate(findings)
    ]
