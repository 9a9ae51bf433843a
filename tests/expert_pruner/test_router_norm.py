"""Router norm: the length of router rows, without data."""

from collections.abc import Callable
from typing import Any

import torch

from stun_exp.expert_pruner.router_norm import RouterNorm
from stun_exp.moe.plan import Plan


def test_router_norm_by_hand(planned: Callable[..., Plan], source: Any) -> None:
    """(3, 4), (-6, 0), (4, 0.5): lengths 5, 6 and 4.03; the largest entry or the sum would keep others."""
    rows = torch.tensor([[3.0, 4.0], [-6.0, 0.0], [4.0, 0.5]])
    (layer,) = planned(RouterNorm(ratio=1 / 3), [source(0, rows)]).layers
    assert layer.facts["scores"] == [5, 6, 16.25**0.5]
    assert layer.kept == [0, 1]


def test_permuting_experts_permutes_the_plan(planned: Callable[..., Plan], source: Any) -> None:
    rows, order = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), [3, 5, 0, 1, 4, 2]
    (plan,) = planned(RouterNorm(ratio=0.5), [source(0, rows)]).layers
    (permuted,) = planned(RouterNorm(ratio=0.5), [source(0, rows[order])]).layers
    assert plan.kept == sorted(order[place] for place in permuted.kept)
