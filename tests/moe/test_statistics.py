"""Routing statistics, against plain loops."""

import torch
from torch import Tensor

from stun_exp.moe.statistics import Coactivation, ExpertTokens


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
