"""Frequency counts tokens."""

from collections.abc import Callable
from typing import Any

import torch

from stun_exp.expert_pruner.frequency import Frequency
from stun_exp.moe.plan import Plan
from stun_exp.moe.statistics import ExpertActivity


def test_frequency_by_hand(planned: Callable[..., Plan], source: Any) -> None:
    """Expert 0 gets three tokens in two batches, 1 one token with large output and gate, 2 two: 1 goes."""
    activity = ExpertActivity(3)
    for expert, tokens, size in [(0, 2, 1.0), (1, 1, 100.0), (2, 2, 1.0), (0, 1, 1.0)]:
        y_ND = torch.full((tokens, 4), size)
        activity.expert(expert, y_ND, y_ND, y_ND, torch.full((tokens,), size / 100))
    (layer,) = planned(Frequency(ratio=1 / 3), [source(0, torch.ones(3, 2))], [[activity]]).layers
    assert layer.facts["scores"] == [3, 1, 2]
    assert layer.kept == [0, 2]
