"""The ratios of layers from those of the units in them, and what the user should know of how they came about."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stun_exp.allocation.protocol import Allotment
from stun_exp.moe.layers import Matrix
from stun_exp.unstructured_pruner.pattern import parsed
from stun_exp.unstructured_pruner.protocol import UnstructuredPruner

NAMED = 8
"""Units with a warning of their own; more are counted."""


@dataclass(frozen=True)
class LayerRatios:
    """The share of its weights that each matrix of a layer loses."""

    rest: float
    experts: dict[int, float] = field(default_factory=dict)
    """Of the experts whose share is their own."""
    measured: float | None = None
    """What the allocation measured of the layer, for the report."""

    def of(self, matrix: Matrix) -> float:
        return self.rest if matrix.expert is None else self.experts.get(matrix.expert, self.rest)


@dataclass(frozen=True)
class Unit:
    """What gets a ratio of its own: a layer, one of its experts, or what is no expert's."""

    layer: int
    expert: int | None
    size: int
    """Number of its weights."""
    measured: float

    def __str__(self) -> str:
        expert = "" if self.expert is None else f", expert {self.expert} (numbered after the expert stage)"
        return f"layer {self.layer}{expert}"


def ratios_of_layers(
    units: Sequence[Unit],
    allotment: Allotment,
    num_layers: int,
    pruner: UnstructuredPruner,
    warn: Callable[[str], None],
) -> list[LayerRatios]:
    """The ratios of each layer, rounded to n of m under the pruner's N:M pattern if it has one; m never go."""
    ratios, limited = list(allotment.ratios), dict(allotment.limited)
    if pruner.compares_layers() and any(unit.expert is not None for unit in units):
        warn(
            "allocation.per=expert has no effect within a layer: unstructured_pruner.group=layer compares all of its "
            "weights, whatever the ratio of each expert; choose another group, or allocation.per=layer"
        )
    if n_of_m := parsed(pruner.pattern):
        neighbours = n_of_m[1]
        wanted = [round(ratio * neighbours) for ratio in ratios]
        full = "unstructured_pruner.pattern can take {0} of {1} neighbours, and the allocation asks for all"
        limited |= {u: full.format(neighbours - 1, neighbours) for u, n in enumerate(wanted) if n == neighbours}
        ratios = [min(n, neighbours - 1) / neighbours for n in wanted]
        if len(set(ratios)) == 1:
            warn(
                f"the allocation has no effect: unstructured_pruner.pattern rounds all of its ratios to "
                f"{round(ratios[0] * neighbours)} of {neighbours}; widen its spread, or choose allocation=uniform"
            )
    for place in list(limited)[:NAMED]:
        warn(f"{units[place]}: {limited[place]}")
    if len(limited) > NAMED:
        warn(f"likewise in {len(limited) - NAMED} more places")
    layers = []
    for index in range(num_layers):
        here = [(unit, ratio) for unit, ratio in zip(units, ratios, strict=True) if unit.layer == index]
        size = sum(unit.size for unit, _ in here)
        layers.append(
            LayerRatios(
                next((ratio for unit, ratio in here if unit.expert is None), 0.0),
                {unit.expert: ratio for unit, ratio in here if unit.expert is not None},
                sum(unit.size * unit.measured for unit, _ in here) / size if size else None,
            )
        )
    return layers
