"""A linear that loses rows and columns: biases, zeros that are there already, and damping."""

import pytest
import torch
from torch import Tensor, nn

from stun_exp.structured_pruner.curved import CurvedLinear
from stun_exp.structured_pruner.kronecker import part_costs, without

N, C, R = 200, 5, 4


def linear(bias: bool) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(C, R, bias=bias, dtype=torch.float64).requires_grad_(False)


def inputs(bias: bool) -> Tensor:
    x_NC = torch.randn(N, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_NC[:, 2] += 0.9 * x_NC[:, 0] + 1.0  # there is something to make up with, the constant included
    return torch.cat([x_NC, torch.ones(N, int(bias), dtype=torch.float64)], dim=1)


def curved(own: nn.Linear, damping: float = 1e-9, zeros_stay: bool = False) -> CurvedLinear:
    x_NC = inputs(own.bias is not None)
    g_NR = torch.randn(N, R, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return CurvedLinear(own, lambda: (x_NC.T @ x_NC / N, g_NR.T @ g_NR / N), damping, zeros_stay)


@pytest.mark.parametrize("bias", [True, False])
def test_without_a_column_the_outputs_are_the_least_squares_fit(bias: bool) -> None:
    """A bias takes part: it is the weight of an input that is always 1."""
    own = linear(bias)
    x_NC = inputs(bias)
    y_NR = own(x_NC[:, :C])
    kept = [0, 1, 3, 4, *range(C, C + bias)]
    expected = x_NC[:, kept] @ torch.linalg.lstsq(x_NC[:, kept], y_NR).solution
    curved(own).remove_([], [2])
    assert not own.weight[:, 2].any()
    torch.testing.assert_close(own(x_NC[:, :C]), expected, rtol=1e-6, atol=1e-6)


def test_a_row_goes_with_its_bias() -> None:
    own = linear(bias=True)
    curved(own).remove_([1], [])
    assert not own.weight[1].any()
    assert own.bias is not None
    assert own.bias[1] == 0
    assert own.bias[[0, 2, 3]].all()


def test_what_is_zero_already_costs_nothing_known_and_stays_zero() -> None:
    own = linear(bias=False)
    own.weight[2], own.weight[:, 4] = 0, 0
    shown = curved(own, zeros_stay=True)
    assert shown.row_costs().isnan().tolist() == [False, False, True, False]
    assert shown.column_costs().isnan().tolist() == [False] * 4 + [True]
    shown.remove_([0], [1])
    assert own.weight.ne(0).any(1).tolist() == [False, True, False, True]
    assert own.weight.ne(0).any(0).tolist() == [True, False, True, True, False]


def test_a_matrix_of_zeros_stays_one() -> None:
    own = linear(bias=False)
    own.weight.zero_()
    shown = curved(own, zeros_stay=True)
    assert shown.row_costs().isnan().all()
    assert shown.column_costs().isnan().all()
    shown.remove_([0], [0])
    assert not own.weight.any()


def test_a_part_costs_what_the_removal_of_all_its_columns_does() -> None:
    """Not the sum of its columns: each would make up for the other."""
    own = linear(bias=True)
    shown, x_NC = curved(own), inputs(bias=True)
    costs = CurvedLinear(own, shown._factors, 1e-9, False)
    weight_RC = torch.cat([own.weight, own.bias[:, None]], dim=1)
    inputs_CC, outputs_RR = shown._factors()
    parts = part_costs(weight_RC, inputs_CC, outputs_RR, num_parts=2, size=2)
    for part in range(2):
        left_RC = without(weight_RC, inputs_CC, outputs_RR, [], [2 * part, 2 * part + 1])
        change_NR = x_NC @ (left_RC - weight_RC).T
        assert float(parts[part]) == pytest.approx(float((change_NR @ outputs_RR * change_NR).sum() / N / 2))
    torch.testing.assert_close(costs.part_costs(C), costs.column_costs())


def test_a_curvature_that_cannot_be_inverted_asks_for_more_damping() -> None:
    own = linear(bias=False)
    ones_CC = torch.full((C, C), 1.0, dtype=torch.float64)
    singular = CurvedLinear(own, lambda: (-ones_CC, torch.eye(R, dtype=torch.float64)), 1e-9, False)
    with pytest.raises(ValueError, match=r"damping=1e-09: .* pass structured_pruner\.damping=1e-08"):
        singular.column_costs()
