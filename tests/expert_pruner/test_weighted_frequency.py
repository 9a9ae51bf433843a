"""Weighted frequency adds up gates."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stun_exp.expert_pruner.weighted_frequency import WeightedFrequency
from stun_exp.moe.plan import Plan
from stun_exp.moe.statistics import ExpertActivity


def test_weighted_frequency_by_hand(planned: Callable[..., Plan], source: Any) -> None:
    """Gates 0.1 + 0.1 + 0.1, 0.9 and 0.5: expert 0 has the most tokens, and goes."""
    activity = ExpertActivity(3)
    for expert, gates in enumerate([[0.1, 0.1, 0.1], [0.9], [0.5]]):
        y_ND = torch.ones(len(gates), 4)
        activity.expert(expert, y_ND, y_ND, y_ND, torch.tensor(gates))
    (layer,) = planned(WeightedFrequency(ratio=1 / 3), [source(0, torch.ones(3, 2))], [[activity]]).layers
    assert layer.facts["scores"] == pytest.approx([0.3, 0.9, 0.5])
    assert layer.kept == [1, 2]
