"""Magnitude: the smallest weights of the whole matrix."""

import torch

from stun_exp.unstructured_pruner.magnitude import Magnitude
from stun_exp.unstructured_pruner.protocol import Task

MAGNITUDE = Magnitude(attention=True, group="matrix", pattern="unstructured")


def prune(weight_OC: torch.Tensor, ratio: float) -> None:
    assert MAGNITUDE.prune_([Task("matrix", weight_OC, None, ratio)]) == []


def test_weights_are_compared_in_the_whole_matrix() -> None:
    """The small ones all lie in row 0: a comparison per row would take one of row 1 instead."""
    weight = torch.tensor([[0.1, -0.2, 9.0], [3.0, -4.0, 5.0]])
    prune(weight, 1 / 3)
    assert weight.tolist() == torch.tensor([[0.0, 0.0, 9.0], [3.0, -4.0, 5.0]]).tolist()


def test_the_count_is_exact_under_ties() -> None:
    """The published `<=` at the threshold would erase all of a matrix of ones."""
    weight = torch.ones(4, 6)
    prune(weight, 0.25)
    assert weight.flatten().tolist() == [0.0] * 6 + [1.0] * 18


def test_zero_percent_is_the_identity() -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    before = weight.clone()
    prune(weight, 0.0)
    assert torch.equal(weight, before)


def test_weights_that_are_zero_already_count() -> None:
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    prune(weight, 0.5)
    assert int((weight == 0).sum()) == 30


def test_a_view_of_a_fused_tensor_is_pruned_in_place() -> None:
    """Transposed experts are views that are not contiguous; a reshaped copy would be pruned for nothing."""
    fused = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))
    prune(fused[1].mT, 0.5)
    assert int((fused[1] == 0).sum()) == 30
    assert bool((fused[0] != 0).all())


def test_it_needs_no_data_and_starves_nobody() -> None:
    assert MAGNITUDE.statistic(8) is None
    assert MAGNITUDE.min_tokens == 0
    assert torch.equal(MAGNITUDE.saliency(torch.tensor([[-2.0, 0.5]]), None), torch.tensor([[2.0, 0.5]]))


def test_a_pattern_holds_along_the_inputs_of_a_transposed_view() -> None:
    """Neighbors in storage are neighbors of a column there; pruned in place all the same."""
    fused = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))
    Magnitude(attention=True, group="row", pattern="2:4").prune_([Task("matrix", fused[1].mT, None, 0.5)])
    assert (fused[1].mT == 0).reshape(6, 2, 4).sum(2).unique().tolist() == [2]
    assert bool((fused[0] != 0).all())
