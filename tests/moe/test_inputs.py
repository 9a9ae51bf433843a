"""Each prunable matrix has the statistic of exactly the inputs that it multiplies."""

import torch
from torch import Tensor

from stun_exp.checkpoint import Checkpoint
from stun_exp.moe.inputs import InputStatistics
from stun_exp.moe.observe import observe
from stun_exp.moe.statistics import ExpertTokens
from stun_exp.stream import Walk
from stun_exp.unstructured_pruner.masks import SquaredNorm


def test_every_feed_counts_its_own_tokens(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    """A linear sees every token, an expert those routed to it; a feed that none updates would prune blindly."""
    for step in Walk(checkpoint, [tokens_BT[:3], tokens_BT[3:]], torch.device("cpu"), "test"):
        matrices = list(step.layer.matrices())
        inputs = InputStatistics(step.layer, matrices, SquaredNorm)
        tokens = ExpertTokens(step.layer.num_experts)
        with observe(step.layer, [inputs, tokens]):
            step.forward()
        for matrix in matrices:
            statistic = inputs.by_feed[matrix.feed]
            expert = int(matrix.name.split(".")[2]) if matrix.kind == "expert" else None
            expected = tokens_BT.numel() if expert is None else int(tokens.count_E[expert])
            assert statistic.num_tokens == expected, matrix.name
            assert statistic.norm_C().shape == (matrix.weight_OC.shape[1],)


def test_feeds_out_of_scope_are_not_gathered(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    step = next(iter(Walk(mixtral, [tokens_BT], torch.device("cpu"), "test")))
    experts = [matrix for matrix in step.layer.matrices() if matrix.kind == "expert"]
    inputs = InputStatistics(step.layer, experts, SquaredNorm)
    with torch.inference_mode(), observe(step.layer, [inputs]):
        step.forward()
    assert inputs.by_feed.keys() == {f"mlp.experts.{e}.{end}" for e in range(6) for end in ("in", "hidden")}
