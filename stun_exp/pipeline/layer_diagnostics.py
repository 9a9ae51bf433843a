"""The diagnostics of a run, layer by layer: some of them may be of an earlier start of the same run."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from stun_exp.moe.layers import Matrix, MoELayer
from stun_exp.moe.plan import Plan
from stun_exp.pipeline.diagnostics import Diagnostics, ReadLayer, Weights
from stun_exp.streaming.walk import Step


@dataclass(frozen=True)
class Seen:
    """What the diagnostics of one layer have found, as plain data."""

    weights: dict[str, list[Weights]]
    layers: list[dict[str, Any]]


class LayerDiagnostics:
    """Diagnostics of each layer by itself; those of an earlier start are given, and not made again."""

    def __init__(
        self, matrices: Callable[[MoELayer], list[Matrix]], earlier: Mapping[int, Seen], batches: int | None = None
    ):
        """`batches` is how many of the calibration batches the reconstruction error is taken on; None for all."""
        self._matrices = matrices
        self._batches = batches
        self._earlier = earlier
        self._parts: dict[int, Diagnostics] = {}
        for layer, seen in earlier.items():
            part = self._part(layer)
            part.weights, part.layers = seen.weights, seen.layers

    def _part(self, layer: int) -> Diagnostics:
        return self._parts.setdefault(layer, Diagnostics(self._matrices, self._batches))

    def before(self, plan: Plan, read: ReadLayer) -> Callable[[MoELayer], None]:
        """Looks at each layer as it was before the expert stage (see `Diagnostics.before`)."""

        def look(layer: MoELayer) -> None:
            if layer.index not in self._earlier:
                self._part(layer.index).before(layer, plan.of(layer.index), read)

        return look

    def watch(self, step: Step) -> AbstractContextManager[None]:
        """A block in which a layer is pruned."""
        return self._part(step.layer.index).watch(step)

    def of(self, layer: int) -> Seen:
        return Seen(self._parts[layer].weights, self._parts[layer].layers)

    def whole(self) -> Diagnostics:
        """The diagnostics of all layers together."""
        whole = Diagnostics(self._matrices, self._batches)
        for _, part in sorted(self._parts.items()):
            for stage, found in part.weights.items():
                whole.weights[stage] += found
            whole.layers += part.layers
        return whole
