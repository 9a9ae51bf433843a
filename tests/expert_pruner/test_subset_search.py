"""Beam and exchanges against the exact answer, on layers made so that greedy goes wrong."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.reconstruction.search import Losses, beam, enumerate_all, exact, exchange
from stun_exp.expert_pruner.reconstruction.subset_search import SubsetSearch
from stun_exp.expert_pruner.reconstruction.token_grams import TokenGrams
from stun_exp.moe.plan import Plan


def subset_search(*, beam_width: int = 1, gap_max_subsets: int = 10**6) -> SubsetSearch:
    return SubsetSearch(
        ratio=0.5, progressive=False, chunk_tokens=50, beam_width=beam_width, gap_max_subsets=gap_max_subsets
    )


def losses_of(outputs_ED: Tensor, logits_TE: Tensor, top_k: int, max_removed: int, renormalizes: bool = True) -> Losses:
    """Losses of a layer whose experts give the same on every token."""
    num_experts = len(outputs_ED)
    grams = TokenGrams(num_experts, top_k, max_removed, renormalizes, chunk_tokens=64)
    gates_TK, chosen_TK = logits_TE.softmax(1).topk(top_k)
    if renormalizes:
        gates_TK = gates_TK / gates_TK.sum(1, keepdim=True)
    grams.routing(logits_TE, chosen_TK, gates_TK)
    grams.all_experts(outputs_ED[:, None].expand(-1, len(logits_TE), -1), logits_TE, chosen_TK, gates_TK)
    return Losses(grams, num_experts)


def greedy_goes_wrong() -> Losses:
    """Top-1 of four experts that give 1, 0, 0 and the root of 2, two of which are to go.

    One token chooses 0, else 1; ten choose 1, else 0, else 3; one 2, else 3, else 1; one 3, else 1. Squared errors of
    one removal: 1, 10, 2, 2. Greedy takes 0 and then 2 or 3, 3 in all. But {2, 3} costs 2: with 3 gone too, the token
    of 2 is served by 1, which gives the same as 2.
    """
    ranks = [[0, 1, 2, 3], *[[1, 0, 3, 2]] * 10, [2, 3, 1, 0], [3, 1, 2, 0]]
    logits_TE = torch.zeros(len(ranks), 4)
    for row_E, order in zip(logits_TE, ranks, strict=True):
        row_E[order] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    return losses_of(torch.tensor([[1.0], [0.0], [0.0], [2**0.5]]), logits_TE, 1, 2)


def random_losses(seed: int, *, num_experts: int = 8, top_k: int = 2, renormalizes: bool = True) -> Losses:
    generator = torch.Generator().manual_seed(seed)
    outputs_ED = torch.randn(num_experts, 3, generator=generator)
    logits_TE = 2 * torch.randn(60, num_experts, generator=generator)
    return losses_of(outputs_ED, logits_TE, top_k, num_experts // 2, renormalizes)


def test_losses_by_hand() -> None:
    losses = greedy_goes_wrong()
    assert losses.one_more(()) == pytest.approx([1, 10**0.5, 2**0.5, 2**0.5])
    assert losses.one_more((2,)) == pytest.approx([3**0.5, 12**0.5, float("inf"), 2**0.5])
    assert losses.evaluated == 4 + 3


def test_beam_and_exchanges_each_find_what_greedy_misses() -> None:
    losses = greedy_goes_wrong()
    greedy, loss = beam(losses, 2, width=1)
    assert (greedy, loss) == ((0, 2), pytest.approx(3**0.5))
    assert beam(losses, 2, width=2) == ((2, 3), pytest.approx(2**0.5))
    assert exchange(losses, greedy, loss) == ((2, 3), pytest.approx(2**0.5))


@pytest.mark.parametrize("renormalizes", [True, False])
def test_a_beam_wide_enough_is_exact(renormalizes: bool) -> None:
    for seed in range(5):
        losses = random_losses(seed, renormalizes=renormalizes)
        removed, loss = beam(losses, 4, width=1000)
        best, least = enumerate_all(losses, 4)
        assert (removed, pytest.approx(loss)) == (best, least)


def test_width_one_is_greedy() -> None:
    losses = random_losses(0)
    removed: tuple[int, ...] = ()
    for _ in range(4):
        after = losses.one_more(removed)
        removed = tuple(sorted((*removed, after.index(min(after)))))
    assert beam(losses, 4, width=1)[0] == removed


def test_exchanges_end_where_no_single_one_helps_and_never_above_the_start() -> None:
    improved = 0
    for seed in range(20):
        losses = random_losses(seed)
        start, loss = beam(losses, 4, width=1)
        end, after = exchange(losses, start, loss)
        assert after <= loss
        improved += after < loss
        for back in end:
            rest = tuple(expert for expert in end if expert != back)
            assert min(losses.one_more(rest)) >= after * (1 - 1e-8)
    assert improved  # or the exchange was never put to the test


def test_exact_looks_at_every_subset() -> None:
    losses = random_losses(3)
    removed, loss = exact(losses, 3)
    every = {
        (*pair, e): v for pair in combinations(range(8), 2) for e, v in enumerate(losses.one_more(pair)) if e > pair[1]
    }
    assert len(every) == 56
    assert removed == min(every, key=lambda subset: every[subset])
    assert loss == pytest.approx(min(every.values()))


def test_gap_is_measured_against_the_exact_answer(
    checkpoint: Checkpoint, tokens_BT: Tensor, plan_and_passes: Callable[..., tuple[Plan, float]]
) -> None:
    narrow, _ = plan_and_passes(checkpoint, subset_search(), [tokens_BT])
    wide, _ = plan_and_passes(checkpoint, subset_search(beam_width=100), [tokens_BT])
    assert narrow.warnings == wide.warnings == []
    for layer, best in zip(narrow.layers, wide.layers, strict=True):
        assert best.facts["gap"] == pytest.approx(0, abs=1e-9)
        assert layer.facts["gap"] == pytest.approx(layer.facts["loss"] / best.facts["loss"] - 1, abs=1e-9)


def test_a_gap_out_of_reach_is_said(mixtral: Checkpoint, tokens_BT: Tensor, plan_and_passes: Any) -> None:
    plan, _ = plan_and_passes(mixtral, subset_search(gap_max_subsets=0), [tokens_BT])
    assert [layer.facts["gap"] for layer in plan.layers] == [None] * 3
    (warning,) = plan.warnings
    assert "no optimality gap for layer 0, 1, 2" in warning
