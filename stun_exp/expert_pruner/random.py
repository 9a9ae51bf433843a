"""Random experts: the baseline that every score must beat."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from stun_exp.expert_pruner.scores import ExpertScores

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.observe import Statistic


class RandomExperts(ExpertScores):
    """Uniform random scores; a layer's depend on the seed and its index alone, not on the layers before it."""

    seed: int = Field(ge=0)

    def statistics(self, layer: "ExpertSource") -> "list[Statistic]":
        return []

    def scores_E(self, layer: "ExpertSource", statistics: "Sequence[Statistic]") -> "Tensor":
        import numpy as np
        import torch

        return torch.from_numpy(np.random.default_rng((self.seed, layer.index)).random(layer.num_experts))
