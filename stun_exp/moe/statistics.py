"""What expert pruners want to know of a layer's routing, gathered in one pass over the calibration tokens."""

import torch
from torch import Tensor

from stun_exp.moe.observe import Statistic


class Coactivation(Statistic):
    """Number of tokens whose top-k holds both experts of a pair: symmetric (E, E), zero diagonal (METHODS 1.4)."""

    def __init__(self, num_experts: int):
        self.count_EE = torch.zeros(num_experts, num_experts, dtype=torch.float64)

    def routing(self, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> None:
        chosen_TE = torch.zeros(len(topk_index_TK), len(self.count_EE), device=topk_index_TK.device)
        chosen_TE.scatter_(1, topk_index_TK, 1.0)
        # fp32 counts tokens of one batch exactly (below 2**24); the total is kept in fp64.
        self.count_EE += (chosen_TE.T @ chosen_TE).fill_diagonal_(0).cpu().double()


class ExpertTokens(Statistic):
    """Number of calibration tokens each expert received, (E,)."""

    def __init__(self, num_experts: int):
        self.count_E = torch.zeros(num_experts, dtype=torch.int64)

    def routing(self, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> None:
        self.count_E += torch.bincount(topk_index_TK.flatten().cpu(), minlength=len(self.count_E))
