"""Routing statistics, against plain loops."""

import pytest
import torch
from torch import Tensor

from stun_exp.moe.statistics import (
    Coactivation,
    DomainUsage,
    ExpertActivity,
    ExpertTokens,
    MeanOutputs,
    RoutedOutputs,
    RouterLogitGram,
)

NOTHING = torch.empty(0)


def choices(tokens: int, num_experts: int, top_k: int) -> Tensor:
    scores_TE = torch.rand(tokens, num_experts, generator=torch.Generator().manual_seed(0))
    return scores_TE.topk(top_k).indices


def test_coactivation_by_hand() -> None:
    """Tokens choose {0, 1}, {1, 0}, {2, 1}: the pair 01 twice whatever the order, the pair 12 once."""
    coactivation = Coactivation(3)
    coactivation.routing(torch.empty(0), torch.tensor([[0, 1], [1, 0], [2, 1]]), torch.empty(0))
    assert coactivation.count_EE.tolist() == [[0, 2, 0], [2, 0, 1], [0, 1, 0]]


def test_coactivation_equals_a_plain_loop_over_batches() -> None:
    coactivation = Coactivation(8)
    slow = [[0] * 8 for _ in range(8)]
    for batch_TK in choices(300, 8, 3).split(110):
        coactivation.routing(torch.empty(0), batch_TK, torch.empty(0))
        for chosen in batch_TK.tolist():
            for i in chosen:
                for j in chosen:
                    slow[i][j] += i != j
    assert coactivation.count_EE.tolist() == slow


def test_expert_tokens_counts_tokens_of_all_batches() -> None:
    """Tokens, not calls: expert 3 is chosen by no token, and has its zero all the same."""
    tokens = ExpertTokens(4)
    for batch_TK in torch.tensor([[[0, 1], [0, 2]], [[0, 1], [1, 2]]]):
        tokens.routing(torch.empty(0), batch_TK, torch.empty(0))
    assert tokens.count_E.tolist() == [3, 3, 2, 0]


def test_domain_usage_by_hand() -> None:
    """Two sequences of two tokens a batch: domains 0 and 1, then 1 and 0. Place 3 is a token's over the capacity."""
    usage = DomainUsage(3, 2, [[0, 1], [1, 0]])
    gates_TK = torch.tensor([[0.5, 0.25]] * 4)
    usage.routing(NOTHING, torch.tensor([[0, 1], [0, 2], [1, 2], [1, 3]]), gates_TK)
    usage.routing(NOTHING, torch.tensor([[2, 0], [2, 0], [0, 1], [3, 1]]), gates_TK)
    assert usage.count_GE.tolist() == [[3, 3, 1], [2, 2, 3]]
    assert usage.gate_GE.tolist() == [[1.5, 0.75, 0.25], [0.5, 1.0, 1.25]]


def test_expert_activity_by_hand() -> None:
    """Expert 0: outputs (0, -13) and (3, 4) at gates 0.25 and 0.5 in two batches, norms 13 and 5. Expert 1: none."""
    activity = ExpertActivity(2)
    for output, gate in [([0.0, -13.0], 0.25), ([3.0, 4.0], 0.5)]:
        y_ND = torch.tensor([output])
        activity.expert(0, NOTHING, NOTHING, y_ND, torch.tensor([gate]))
        activity.expert(1, NOTHING, NOTHING, torch.empty(0, 2), torch.empty(0))
    assert activity.count_E.tolist() == [2, 0]
    assert activity.gate_E.tolist() == [0.75, 0]
    assert activity.norm_E.tolist() == [18, 0]
    assert activity.gated_norm_E.tolist() == [0.5 * 5 + 0.25 * 13, 0]
    assert activity.max_E.tolist() == [13, 0]
    assert activity.reap_E().tolist() == [2.875, 0]  # 0 / 0 would be NaN for the expert without a token


def test_expert_activity_equals_a_loop_over_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    activity, slow = ExpertActivity(1), torch.zeros(5, dtype=torch.float64)
    for tokens in (7, 1, 12):
        y_ND, gate_N = torch.randn(tokens, 6, generator=generator), torch.rand(tokens, generator=generator)
        activity.expert(0, NOTHING, NOTHING, y_ND, gate_N)
        for y_D, gate in zip(y_ND.double(), gate_N.double(), strict=True):
            norm = (y_D @ y_D).sqrt()
            slow[:4] += torch.stack([torch.ones_like(gate), gate, norm, gate * norm])
            slow[4] = max(slow[4], *y_D.abs())
    found = torch.cat([activity.count_E, activity.gate_E, activity.norm_E, activity.gated_norm_E, activity.max_E])
    torch.testing.assert_close(found, slow, rtol=1e-6, atol=0)
    assert float(activity.reap_E()) == pytest.approx(float(slow[3] / slow[0]), rel=1e-6)


def test_norms_of_16_bit_outputs_are_not_rounded_to_16_bits() -> None:
    """64 entries of 1.5 have the norm 12; added up over 300 tokens in bf16, the sum would stop at 2,048 or so."""
    activity = ExpertActivity(1)
    activity.expert(0, NOTHING, NOTHING, torch.full((300, 64), 1.5).bfloat16(), torch.ones(300).bfloat16())
    assert activity.norm_E.tolist() == activity.gated_norm_E.tolist() == [3600]


def test_mean_outputs_weigh_every_token_alike() -> None:
    """Chunks of two tokens and of one: (1 + 2 + 6) / 3 = 3, where a mean of the chunks' means would be 3.75."""
    outputs = MeanOutputs()
    outputs.all_experts(torch.tensor([[[1.0], [2.0]], [[0.0], [3.0]]]), NOTHING, NOTHING, NOTHING)
    outputs.all_experts(torch.tensor([[[6.0]], [[0.0]]]), NOTHING, NOTHING, NOTHING)
    assert outputs.mean_ED().tolist() == [[3.0], [1.0]]


def test_mean_outputs_are_added_up_in_fp64() -> None:
    """2**24 + 1 is not an fp32 number: the one token beside a large one would be lost."""
    outputs = MeanOutputs()
    outputs.all_experts(torch.tensor([[[2.0**24], [1.0]]]), NOTHING, NOTHING, NOTHING)
    assert outputs.mean_ED().tolist() == [[(2**24 + 1) / 2]]


def test_routed_outputs_are_kept_batch_by_batch_and_copied() -> None:
    """What a layer gives is overwritten by what comes after: kept without a copy, it would change."""
    outputs = RoutedOutputs()
    y_TD = torch.tensor([[1.0, 2.0]])
    outputs.output(y_TD)
    y_TD.zero_()
    outputs.output(torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    assert [output.tolist() for output in outputs.outputs_TD] == [[[1, 2]], [[3, 4], [5, 6]]]


def test_router_logit_gram_by_hand() -> None:
    """Logits (1, 3), (2, 0) in one batch, (0, -1) in another: 1 + 4, 3 + 0 + 0 and 9 + 1."""
    gram = RouterLogitGram(2)
    gram.routing(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), NOTHING, NOTHING)
    gram.routing(torch.tensor([[0.0, -1.0]]).bfloat16(), NOTHING, NOTHING)
    assert gram.gram_EE.tolist() == [[5, 3], [3, 10]]
