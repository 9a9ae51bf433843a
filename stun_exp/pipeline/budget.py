"""Total sparsity <-> expert ratio <-> weight ratio, exact, by parameter counts.

With N weights in scope, R of them in what the first stage removes, and P left that the second stage may prune, a total
sparsity s leaves the second stage the ratio (s N - R) / P of its weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from stun_exp.checkpoint.architecture import Architecture
from stun_exp.moe.counts import by_layer
from stun_exp.moe.layers import Kind, MoELayer
from stun_exp.unstructured_pruner.pattern import fixed_ratio
from stun_exp.unstructured_pruner.protocol import UnstructuredPruner

Scope = Literal["experts", "decoder", "model"]
BUDGET_TOLERANCE = 0.001
"""How far the achieved total may lie from the asked one."""


@dataclass(frozen=True)
class LayerBudget:
    """Weights of one layer, by what may happen to them."""

    in_scope: int
    removed: int
    prunable: int
    """What the expert stage leaves and the second stage may prune."""


@dataclass(frozen=True)
class Budget:
    """The counts behind one run's total sparsity."""

    sparsity: float
    in_scope: int
    layers: list[LayerBudget]
    """Of the model that is pruned: a structured pruner may have taken layers, and parts of those that are left."""
    restructured: int = 0
    """Weights in scope that the structured pruner has taken."""

    @property
    def removed(self) -> int:
        return sum(layer.removed for layer in self.layers) + self.restructured

    @property
    def prunable(self) -> int:
        return sum(layer.prunable for layer in self.layers)

    def weights_ratio(self) -> float:
        """Share of the prunable weights that the second stage must set to zero.

        ValueError if the expert stage alone exceeds the total, or if too little is prunable to reach it.
        """
        missing = self.sparsity * self.in_scope - self.removed
        if missing < -BUDGET_TOLERANCE * self.in_scope:
            raise ValueError(
                f"sparsity={self.sparsity}: the {self._first_stage()} stage alone takes "
                f"{self.removed / self.in_scope:.4f} of the weights in scope; raise sparsity or lower "
                f"{self._first_stage()}_pruner.ratio"
            )
        if missing > self.prunable:
            most = (self.removed + self.prunable) / self.in_scope
            raise ValueError(
                f"sparsity={self.sparsity}: only {most:.4f} of the weights in scope can be pruned; lower sparsity, "
                "or prune attention too, or choose sparsity_scope=experts"
            )
        return max(missing, 0) / self.prunable if self.prunable else 0.0

    def without(self, share: float, weights: int) -> "Budget":
        """What is to be expected where a structured pruner will take that share of each layer, so many `weights`."""
        layers = [replace(layer, prunable=round(layer.prunable * (1 - share))) for layer in self.layers]
        return replace(self, layers=layers, restructured=weights)

    def _first_stage(self) -> str:
        return "structured" if self.restructured else "expert"


def weights_ratio(budget: Budget, pruner: UnstructuredPruner) -> float:
    """The second stage's ratio: what the budget leaves to it, what its pattern takes, or nothing."""
    return (fixed_ratio(pruner.pattern) or budget.weights_ratio()) if pruner.prunes else 0.0


def kinds_in_scope(scope: Scope) -> set[Kind]:
    """The kinds of matrix that the second stage may prune under a scope."""
    return {"expert"} if scope == "experts" else {"expert", "attention", "mlp"}


def budget_of(
    checkpoint: Architecture,
    kept: dict[int, int],
    sparsity: float,
    scope: Scope,
    attention: bool,
    restructured: int = 0,
) -> Budget:
    """The counts when layer i keeps `kept[i]` experts (all, for a layer that is not named).

    `restructured` weights in scope are no longer in the checkpoint: the structured pruner has taken them.

    `experts` counts the matrices of routed experts, `decoder` every matrix of a decoder layer but the router and gates,
    `model` every parameter. `attention` says whether the second stage may prune attention.
    """
    kinds = kinds_in_scope(scope)
    layers = []
    for index in range(checkpoint.num_layers):
        layer = checkpoint.outline(index)
        by_kind = count_by_kind(layer)
        gone = layer.num_experts - kept.get(index, layer.num_experts)
        removed_weights = gone * by_kind["expert"] // max(layer.num_experts, 1)
        removed = gone * layer.parameters_per_expert() if scope == "model" else removed_weights
        prunable = sum(n for kind, n in by_kind.items() if kind in kinds and (attention or kind != "attention"))
        everything = sum(parameter.numel() for parameter in layer.module.parameters())
        in_scope = everything if scope == "model" else sum(by_kind[kind] for kind in kinds)
        layers.append(LayerBudget(in_scope, removed, prunable - removed_weights))
    outside = checkpoint.num_parameters - sum(layer.in_scope for layer in layers) if scope == "model" else 0
    in_scope = restructured + outside + sum(layer.in_scope for layer in layers)
    return Budget(sparsity, in_scope, layers, restructured)


def weights_in_scope(architecture: Architecture, scope: Scope) -> int:
    """All weights that count for a total sparsity under a scope."""
    if scope == "model":
        return architecture.num_parameters
    return sum(count_by_kind(layer)[kind] for layer in architecture.outlines for kind in kinds_in_scope(scope))


class CountedLayer(Protocol):
    """A layer with experts, as far as it is counted."""

    @property
    def index(self) -> int: ...

    @property
    def num_experts(self) -> int: ...

    @property
    def num_groups(self) -> int: ...


def even_shares(layers: Sequence[CountedLayer], ratio: float) -> list[int]:
    """How many experts each layer keeps when all lose the same share and the total is exact.

    Where the share is not whole, later layers take up what is missing. A group-limited router loses equally many of
    each group, so the total is then the nearest that whole groups allow.
    """
    counts, met, gone = [], 0, 0
    for layer in layers:
        met += layer.num_experts
        here = layer.num_groups * round((round(ratio * met) - gone) / layer.num_groups)
        gone += here
        counts.append(layer.num_experts - here)
    return counts


def shares_by_layer(layers: Sequence[CountedLayer], counts: Sequence[int]) -> str:
    """`layers 0-2: 5 of 8, layer 3: 4 of 8`: what each layer keeps."""
    return ", ".join(by_layer((layer.index, n, layer.num_experts) for layer, n in zip(layers, counts, strict=True)))


def expected_counts(checkpoint: Architecture, ratio: float) -> dict[int, int]:
    """Experts kept in each layer if as many go in all as `ratio` asks, from the first layers; for totals only.

    ValueError if the layers cannot lose that many and keep top_k each.
    """
    layers = [layer for layer in map(checkpoint.outline, range(checkpoint.num_layers)) if layer.is_moe]
    if not layers:
        if not ratio:
            return {}
        raise ValueError(
            f"expert_pruner.ratio={ratio:g}: no layer of {checkpoint.path} has experts; pass expert_pruner=none, and "
            "structured_pruner=neurons or structured_pruner=layers to remove whole parts of a dense model"
        )
    total = sum(layer.num_experts for layer in layers)
    removable = sum(layer.num_experts - layer.min_experts for layer in layers)
    left = round(ratio * total)
    if left > removable:
        names = ", ".join(str(layer.index) for layer in layers)
        most = max(layer.min_experts for layer in layers)
        raise ValueError(
            f"expert_pruner.ratio={ratio:g} removes {left} of {total} experts; each of the layers {names} must keep "
            f"{most} (top_k={layers[0].top_k}), so {removable} can go: the ratio can be at most "
            f"{removable / total:.4f}; even shares would keep in {shares_by_layer(layers, even_shares(layers, ratio))}"
        )
    counts = {}
    for layer in layers:
        gone = min(left, layer.num_experts - layer.min_experts)
        counts[layer.index] = layer.num_experts - gone
        left -= gone
    return counts


def count_by_kind(layer: MoELayer) -> dict[Kind, int]:
    """Weights in a layer's matrices, by kind."""
    counts: dict[Kind, int] = {"attention": 0, "mlp": 0, "expert": 0}
    for matrix in layer.matrices():
        counts[matrix.kind] += matrix.weight_OC.numel()
    return counts
