"""Searches for the set of experts whose removal changes a layer's output least.

The loss of a set of removed experts is Lu et al.'s: the sum over the calibration batches of the Frobenius norm of the
output's change, accumulated in fp64.
"""

from itertools import combinations
from math import comb

import torch
from torch import Tensor

from stun_exp.expert_pruner.reconstruction.lattice import best_subset, num_sets
from stun_exp.expert_pruner.reconstruction.token_grams import TokenChunk, TokenGrams, squared_error

Removed = tuple[int, ...]
BY_ITSELF = 1024
"""Sets of the lattice that cost about as much as one loss computed by itself."""


class Losses:
    """Losses of subsets, with the number of them that were computed."""

    def __init__(self, grams: TokenGrams, num_experts: int):
        self.grams = grams
        self.num_experts = num_experts
        self.evaluated = 0

    def one_more(self, removed: Removed) -> list[float]:
        """Loss of `removed` and expert i together, for each i; infinite for those that are gone already."""
        gone_E = torch.zeros(self.num_experts, dtype=torch.bool)
        gone_E[list(removed)] = True
        squares_BE = torch.zeros(self.grams.num_batches, self.num_experts, dtype=torch.float64)
        for chunk in self.grams.chunks():
            squares_BE[chunk.batch] += _one_more(chunk, gone_E)
        self.evaluated += self.num_experts - len(removed)
        loss_E: list[float] = squares_BE.sqrt().sum(0).masked_fill(gone_E, torch.inf).tolist()
        return loss_E


def _one_more(chunk: TokenChunk, gone_E: Tensor) -> Tensor:
    """Sum of squared errors over a chunk if one more expert goes, for each expert, (E,)."""
    top_k = chunk.top_k
    left_TE = ~gone_E[chunk.order_TE]
    # The first K + 1 ranks that are left: the top-k now, and who joins it if one of them goes.
    countdown = torch.arange(left_TE.shape[1], 0, -1)
    ranks_TX = (left_TE * countdown).topk(top_k + 1, dim=1).indices
    left_T = (chunk.value_TE * left_TE).sum(1)
    after_TE = (left_T[:, None] - chunk.value_TE).clamp(min=torch.finfo(torch.float64).tiny)
    now_TK = ranks_TX[:, :top_k]
    # Whoever serves a token not: its top-k stays, and its gates change only if they are a softmax over all.
    scale_T1 = chunk.scale_T(now_TK, left_T)[:, None]
    scale_TE = scale_T1.expand_as(after_TE) if chunk.renormalizes else 1 / after_TE
    errors_TE = squared_error(scale_TE, *(term[:, None] for term in chunk.terms_T(now_TK)))
    for place in range(top_k):
        others_TK = torch.cat([ranks_TX[:, :place], ranks_TX[:, place + 1 :]], 1)
        rank_T1 = ranks_TX[:, place, None]
        without_T = chunk.errors_T(others_TK, after_TE.gather(1, rank_T1)[:, 0])
        errors_TE = errors_TE.scatter(1, rank_T1, without_T[:, None])
    errors_TE = errors_TE.masked_fill(~left_TE, 0)
    return torch.bincount(chunk.order_TE.flatten(), errors_TE.flatten(), len(gone_E))


def greedy(losses: Losses, num_removed: int) -> tuple[Removed, float]:
    """The experts in the order in which they go, each the one whose removal hurts least; of equals the lower number."""
    removed: list[int] = []
    loss = 0.0
    for _ in range(num_removed):
        loss, expert = min((loss, expert) for expert, loss in enumerate(losses.one_more(tuple(removed))))
        removed.append(expert)
    return tuple(removed), loss


def beam(losses: Losses, num_removed: int, width: int) -> tuple[Removed, float]:
    """The best set found when the `width` best sets of each size are extended by every expert."""
    states: list[tuple[float, Removed]] = [(0.0, ())]
    for _ in range(num_removed):
        found: dict[Removed, float] = {}
        for _, removed in states:
            for expert, loss in enumerate(losses.one_more(removed)):
                if expert not in removed:
                    found.setdefault(tuple(sorted((*removed, expert))), loss)
        states = sorted((loss, removed) for removed, loss in found.items())[:width]
    loss, removed = states[0]
    return removed, loss


def exchange(losses: Losses, removed: Removed, loss: float) -> tuple[Removed, float]:
    """The set after the best exchange of one removed for one kept expert, as long as one helps."""
    while removed:
        loss_now = loss
        for back in removed:
            rest = tuple(expert for expert in removed if expert != back)
            for expert, candidate in enumerate(losses.one_more(rest)):
                # By more than rounding, or two equal sets would be exchanged for ever.
                if candidate < loss * (1 - 1e-9):
                    best, loss = tuple(sorted((*rest, expert))), candidate
        if loss == loss_now:
            break
        removed = best
    return removed, loss


def exact_cost(num_experts: int, num_removed: int, renormalizes: bool) -> int:
    """What `exact` has to visit: the sets of the lattice, or every set by itself, which counts as 1,024."""
    if renormalizes:
        return num_sets(num_experts, num_removed)
    return BY_ITSELF * comb(num_experts, num_removed)


def exact(losses: Losses, num_removed: int) -> tuple[Removed, float]:
    """The set with the least loss of all; of equals, whichever comes first."""
    losses.evaluated += comb(losses.num_experts, num_removed)
    if losses.grams.renormalizes:
        return best_subset(losses.grams, losses.num_experts, num_removed)
    return enumerate_all(losses, num_removed)


def enumerate_all(losses: Losses, num_removed: int) -> tuple[Removed, float]:
    """The best of all sets, one after the other: for routers whose gates depend on every expert that is left."""
    if num_removed == 0:
        return (), 0.0
    best: tuple[float, Removed] = (torch.inf, ())
    for removed in combinations(range(losses.num_experts - 1), num_removed - 1):
        last = removed[-1] if removed else -1
        for expert, loss in enumerate(losses.one_more(removed)):
            if expert > last:
                best = min(best, (loss, (*removed, expert)))
    return best[1], best[0]
