"""The base of the pruners that score every weight by itself and take the lowest."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from stun_exp.config.component import Component
from stun_exp.unstructured_pruner.pattern import Pattern, check_width, parsed

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.unstructured_pruner.protocol import InputStatistic, Task


class SaliencyPruner(Component):
    """Sets the weights with the lowest saliency to zero; what a weight's saliency is, is the subclass's."""

    prunes: ClassVar[bool] = True
    experts_at_once: ClassVar[int | None] = None
    attention: bool
    """Whether attention is pruned too."""
    group: Literal["row", "cumulative", "matrix", "layer"]
    """What weights are compared with: their output row, its cumulative shares, their matrix, or all of the layer (but
    starved experts, which are compared with one another)."""
    pattern: Pattern
    """`unstructured`, or n:m: the n lowest of every m neighbouring inputs of a row go."""

    @model_validator(mode="after")
    def _group_has_an_effect(self) -> "SaliencyPruner":
        if parsed(self.pattern) and self.group in ("cumulative", "layer"):
            raise ValueError(
                f"pattern={self.pattern} compares neighbours of a row with one another, so group={self.group} has no "
                "effect; pass group=row or group=matrix, which are the same there, or pattern=unstructured"
            )
        return self

    @abstractmethod
    def saliency(
        self, weight_OC: "Tensor", statistic: "InputStatistic | None", per_token: bool = False
    ) -> "Tensor": ...

    def compares_layers(self) -> bool:
        return self.group == "layer"

    def prune_(self, tasks: "Sequence[Task]") -> list[str]:
        from stun_exp.unstructured_pruner import masks

        asked = [task for task in tasks if task.ratio > 0]
        if self.group == "layer" and asked:
            saliencies = [self.saliency(task.weight_OC, task.statistic) for task in asked]
            wanted = sum(task.ratio * task.weight_OC.numel() for task in asked)
            for task, mask in zip(asked, masks.lowest_together(saliencies, wanted), strict=True):
                task.weight_OC.masked_fill_(mask, 0)
            return []
        n_of_m = parsed(self.pattern)
        for task in asked:
            check_width(self.pattern, task.weight_OC.shape[1], task.name)
            saliency_OC = self.saliency(task.weight_OC, task.statistic)
            if n_of_m:
                mask = masks.lowest_of_neighbours(saliency_OC, task.ratio, n_of_m[1])
            else:
                mask = masks.lowest_in_group(saliency_OC, task.ratio, self.group)
            task.weight_OC.masked_fill_(mask, 0)
        return []
