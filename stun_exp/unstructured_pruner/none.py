"""Keep all weights."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.unstructured_pruner.protocol import Inputs, InputStatistic, Starved, Task


class KeepAllWeights(Component):
    """Sets nothing to zero."""

    prunes: ClassVar[bool] = False
    attention: ClassVar[bool] = False
    pattern: ClassVar[str] = "unstructured"
    experts_at_once: ClassVar[int | None] = None
    inputs: ClassVar["Inputs"] = "dense"
    min_tokens: ClassVar[int] = 0
    starved: ClassVar["Starved"] = "magnitude"

    def compares_layers(self) -> bool:
        return False

    def statistic(self, num_inputs: int) -> "InputStatistic | None":
        return None

    def saliency_statistic(self, num_inputs: int) -> "InputStatistic | None":
        return None

    def saliency(self, weight_OC: "Tensor", statistic: "InputStatistic | None", per_token: bool = False) -> "Tensor":
        return weight_OC.abs().float()

    def prune_(self, tasks: "Sequence[Task]") -> list[str]:
        assert all(task.ratio == 0 for task in tasks)
        return []
