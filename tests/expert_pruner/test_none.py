"""Off is a component: all experts stay."""

from collections.abc import Callable

from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.none import KeepAllExperts
from stun_exp.moe.plan import Plan


def test_every_expert_is_kept_without_looking(
    checkpoint: Checkpoint, tokens_BT: Tensor, plan_and_passes: Callable[..., tuple[Plan, float]]
) -> None:
    plan, passes = plan_and_passes(checkpoint, KeepAllExperts(), [tokens_BT])
    assert passes == 0
    assert all(layer.groups == [[expert] for expert in range(6)] for layer in plan.layers)
    assert [layer.layer for layer in plan.layers] == [i for i in range(3) if checkpoint.outline(i).is_moe]
