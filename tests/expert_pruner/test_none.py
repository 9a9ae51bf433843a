"""Off is a component: all experts stay."""

import torch
from torch import Tensor

from stun_exp.checkpoint import Checkpoint
from stun_exp.expert_pruner.none import KeepAllExperts
from stun_exp.stages import expert_statistics, plan_experts
from stun_exp.stream import Walk


def test_every_expert_is_kept_without_looking(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    pruner = KeepAllExperts()
    walk = Walk(checkpoint, [tokens_BT], torch.device("cpu"), "test")
    plan = plan_experts(checkpoint, pruner, expert_statistics(checkpoint, pruner, walk))
    assert walk.forward_passes == 0
    assert all(layer.groups == [[expert] for expert in range(6)] for layer in plan.layers)
    assert [layer.layer for layer in plan.layers] == [i for i in range(3) if checkpoint.outline(i).is_moe]
