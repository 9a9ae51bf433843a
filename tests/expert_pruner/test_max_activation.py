"""Max activation: the largest entry of any output, whatever its sign."""

from collections.abc import Callable
from typing import Any

import torch

from stun_exp.expert_pruner.max_activation import MaxActivation
from stun_exp.moe.plan import Plan
from stun_exp.moe.statistics import ExpertActivity


def test_max_activation_by_hand(planned: Callable[..., Plan], source: Any) -> None:
    """Expert 0's outlier is negative, in its first batch; expert 1's outputs are longer, but have no entry above 4."""
    activity = ExpertActivity(3)
    for expert, output in [(0, [0.0, -9.0]), (0, [1.0, 1.0]), (1, [4.0, 4.0]), (1, [4.0, 4.0]), (2, [5.0, 0.0])]:
        y_ND = torch.tensor([output])
        activity.expert(expert, y_ND, y_ND, y_ND, torch.ones(1))
    (layer,) = planned(MaxActivation(ratio=1 / 3), [source(0, torch.ones(3, 2))], [[activity]]).layers
    assert layer.facts["scores"] == [9, 4, 5]
    assert layer.kept == [0, 2]
