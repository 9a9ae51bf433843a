"""SparseGPT: weights go in order of the error they leave after the others have made up for them (arXiv 2301.00774)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from stun_exp.config.component import Component
from stun_exp.unstructured_pruner.pattern import Pattern, check_width, parsed

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.unstructured_pruner.hessian import Hessian
    from stun_exp.unstructured_pruner.masks import SquaredNorm
    from stun_exp.unstructured_pruner.protocol import InputStatistic, Task


class SparseGPT(Component):
    """Columns from left to right, each error spread over the columns to its right by the Hessian of the inputs.

    Counts are exact; the published code takes one weight too many of each block, and all weights of inputs that were
    always zero, which is all of an expert that no token reached: here an expert without tokens is pruned by magnitude,
    block by block, and nothing else of it changes.
    """

    prunes: ClassVar[bool] = True
    attention: bool
    """Whether attention is pruned too."""
    pattern: Pattern
    """`unstructured`, or n:m: the n lowest of every m neighbouring inputs of a row go."""
    block_size: int = Field(ge=1)
    """Columns whose weights are compared with one another, over all rows; with n:m, no more than a matter of speed."""
    damping: float = Field(gt=0, le=1)
    """Added to the Hessian's diagonal, as a share of its mean."""
    inputs: Literal["pruned", "dense"]
    """Hessians behind the layers pruned before, as the paper does, or behind dense ones, which serve any sparsity."""
    min_tokens: int = Field(ge=1)
    """An expert that fewer calibration tokens reached is starved; 1 means one that none reached."""
    starved: Literal["every_token", "shared", "magnitude", "dense"]
    """A starved expert is pruned by what it makes of every token, by the sum of its layer's Hessians, by magnitude,
    or not at all, while the rest of its layer makes up for it."""
    experts_at_once: int | None = Field(ge=1)
    """Experts whose Hessians are held at the same time, null for all; the calibration text is run through the layer
    once for each portion."""

    @model_validator(mode="after")
    def _neighbours_lie_in_one_block(self) -> "SparseGPT":
        n_of_m = parsed(self.pattern)
        if n_of_m and self.block_size % n_of_m[1]:
            raise ValueError(
                f"block_size={self.block_size} would cut the {n_of_m[1]} neighbours of pattern={self.pattern}; "
                f"pass a multiple of {n_of_m[1]}"
            )
        return self

    def compares_layers(self) -> bool:
        return False

    def statistic(self, num_inputs: int) -> "Hessian":
        from stun_exp.unstructured_pruner.hessian import Hessian

        return Hessian(num_inputs)

    def saliency_statistic(self, num_inputs: int) -> "SquaredNorm":
        from stun_exp.unstructured_pruner.masks import SquaredNorm

        return SquaredNorm(num_inputs)

    def saliency(self, weight_OC: "Tensor", statistic: "InputStatistic | None", per_token: bool = False) -> "Tensor":
        """Wanda's, |W_ij| ||x_j||_2: by this OWL spreads the ratio when it prunes by SparseGPT."""
        from stun_exp.unstructured_pruner.masks import SquaredNorm

        assert isinstance(statistic, SquaredNorm)
        return weight_OC.abs().float() * statistic.norm_C(per_token).to(weight_OC.device)

    def prune_(self, tasks: "Sequence[Task]") -> list[str]:
        for task in tasks:
            check_width(self.pattern, task.weight_OC.shape[1], task.name)
        return [warning for batch in _batches(tasks) for warning in self._prune_batch_(batch)]

    def _prune_batch_(self, batch: "list[list[Task]]") -> list[str]:
        """Prunes bundles of one shape; a bundle is matrices with one Hessian."""
        import torch

        from stun_exp.unstructured_pruner import hessian

        n_of_m = parsed(self.pattern)
        hessians = []
        for bundle in batch:
            assert isinstance(bundle[0].statistic, hessian.Hessian)
            hessians.append(bundle[0].statistic)
        factor_GCC, alive_GC, used = hessian.factors(hessians, self.damping, batch[0][0].weight_OC.device)
        warnings = []
        for bundle, damping in zip(batch, used, strict=True):
            names = ", ".join(task.name for task in bundle)
            if damping is None:
                raise ValueError(
                    f"{names}: the Hessian of the inputs is not positive definite with unstructured_pruner.damping="
                    f"{self.damping:g}, nor with ten times as much, again and again up to {hessian.MOST_DAMPING:g}; "
                    "try model.dtype=float32, or another unstructured_pruner"
                )
            if damping != self.damping:
                warnings.append(
                    f"{names}: the Hessian of the inputs is not positive definite with unstructured_pruner.damping="
                    f"{self.damping:g}; {damping:g} was used"
                )
        matrices = [(len(task.weight_OC), task.ratio) for task in batch[0]]
        weight_GCR = torch.stack([torch.cat([task.weight_OC.float() for task in bundle]).mT for bundle in batch])
        kept_GCR = hessian.prune(
            weight_GCR.contiguous(), factor_GCC, alive_GC, matrices, self.block_size, n_of_m[1] if n_of_m else None
        )
        for bundle, kept_CR in zip(batch, kept_GCR, strict=True):
            pieces = kept_CR.split([rows for rows, _ in matrices], 1)
            for task, piece_CO in zip(bundle, pieces, strict=True):
                task.weight_OC.copy_(piece_CO.mT)
        return warnings


def _batches(tasks: "Sequence[Task]") -> "list[list[list[Task]]]":
    """The tasks with something to prune: those of one statistic in a bundle, bundles of the same shapes together."""
    bundles: dict[int, list[Task]] = {}
    for task in tasks:
        if task.ratio > 0:
            bundles.setdefault(id(task.statistic), []).append(task)
    batches: dict[tuple[object, ...], list[list[Task]]] = {}
    for bundle in bundles.values():
        alike = tuple((task.weight_OC.shape, task.ratio, task.weight_OC.device) for task in bundle)
        batches.setdefault(alike, []).append(bundle)
    return list(batches.values())
