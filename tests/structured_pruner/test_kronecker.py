"""Removing rows and columns under a Kronecker-factored Hessian, against the quadratic problem written out."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from stun_exp.structured_pruner.kronecker import column_costs, damped, row_costs, without

R, C = 6, 9
ROWS, COLUMNS = [1, 4], [0, 3, 8]


def positive(size: int, seed: int) -> Tensor:
    samples = torch.randn(3 * size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return samples.T @ samples / len(samples)


@pytest.fixture
def weight_RC() -> Tensor:
    return torch.randn(R, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


INPUTS_CC, OUTPUTS_RR = positive(C, 1), positive(R, 2)


def growth(weight_RC: Tensor, left_RC: Tensor, inputs_CC: Tensor = INPUTS_CC, outputs_RR: Tensor = OUTPUTS_RR) -> float:
    change_RC = left_RC - weight_RC
    return 0.5 * float((change_RC.T @ outputs_RR @ change_RC @ inputs_CC).trace())


def optimum(weight_RC: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """The best matrix with those rows and columns zero: the quadratic problem over all single weights, solved."""
    gone_RC = torch.zeros(R, C, dtype=torch.bool)
    gone_RC[list(rows)], gone_RC[:, list(columns)] = True, True
    gone = gone_RC.flatten()
    hessian = torch.kron(OUTPUTS_RR, INPUTS_CC)
    flat = weight_RC.flatten()
    best = torch.zeros_like(flat)
    moved = torch.linalg.solve(hessian[~gone][:, ~gone], hessian[~gone][:, gone] @ flat[gone])
    best[~gone] = flat[~gone] + moved
    return best.view(R, C)


@pytest.mark.parametrize(("rows", "columns"), [(ROWS, []), ([], COLUMNS), (ROWS, COLUMNS)])
def test_what_stays_is_the_optimum_of_the_quadratic_problem(
    weight_RC: Tensor, rows: list[int], columns: list[int]
) -> None:
    ours = without(weight_RC, INPUTS_CC, OUTPUTS_RR, rows, columns)
    torch.testing.assert_close(ours, optimum(weight_RC, rows, columns), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("outputs_RR", [OUTPUTS_RR, positive(R, 3), torch.eye(R, dtype=torch.float64)])
def test_removing_columns_is_least_squares_whatever_the_gradients_are(weight_RC: Tensor, outputs_RR: Tensor) -> None:
    """W A[:, K] A_KK^-1 for the columns K that stay."""
    kept = [column for column in range(C) if column not in COLUMNS]
    ours = without(weight_RC, INPUTS_CC, outputs_RR, [], COLUMNS)
    expected = weight_RC @ INPUTS_CC[:, kept] @ torch.linalg.inv(INPUTS_CC[kept][:, kept])
    torch.testing.assert_close(ours[:, kept], expected, rtol=1e-6, atol=1e-6)
    assert not ours[:, COLUMNS].any()


def test_both_sides_together_lose_less_than_the_sum_of_their_updates(weight_RC: Tensor) -> None:
    """The authors' code adds up two updates, each as if the other were not, and zeroes what is to go."""
    joint = without(weight_RC, INPUTS_CC, OUTPUTS_RR, ROWS, COLUMNS)
    alone = [
        without(weight_RC, INPUTS_CC, OUTPUTS_RR, rows, columns) - weight_RC
        for rows, columns in ((ROWS, []), ([], COLUMNS))
    ]
    summed, bare = weight_RC + alone[0] + alone[1], weight_RC.clone()
    for left in (summed, bare):
        left[ROWS], left[:, COLUMNS] = 0, 0
    assert growth(weight_RC, joint) < growth(weight_RC, summed) < growth(weight_RC, bare)


def test_a_cost_is_what_the_best_removal_costs(weight_RC: Tensor) -> None:
    rows = [growth(weight_RC, without(weight_RC, INPUTS_CC, OUTPUTS_RR, [row], [])) for row in range(R)]
    columns = [growth(weight_RC, without(weight_RC, INPUTS_CC, OUTPUTS_RR, [], [column])) for column in range(C)]
    torch.testing.assert_close(row_costs(weight_RC, INPUTS_CC, OUTPUTS_RR), torch.tensor(rows, dtype=torch.float64))
    torch.testing.assert_close(
        column_costs(weight_RC, INPUTS_CC, OUTPUTS_RR), torch.tensor(columns, dtype=torch.float64)
    )


def test_costs_by_hand() -> None:
    """G = diag(2, 4) and A = diag(1, 3): 1/2 w^2 A G of each weight, summed."""
    weight_RC = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    factors = torch.diag(torch.tensor([1.0, 3.0])), torch.diag(torch.tensor([2.0, 4.0]))
    assert row_costs(weight_RC, *factors).tolist() == pytest.approx([(1 + 12) * 2 / 2, 9 * 4 / 2])
    assert column_costs(weight_RC, *factors).tolist() == pytest.approx([(2 + 36) / 2, 8 * 3 / 2])


@pytest.mark.parametrize("removed", [lambda w: without(w, INPUTS_CC, OUTPUTS_RR, ROWS, COLUMNS)])
def test_the_order_of_rows_and_columns_is_without_effect(
    weight_RC: Tensor, removed: Callable[[Tensor], Tensor]
) -> None:
    """Neurons have no order: a permuted problem has the permuted solution."""
    rows, columns = torch.randperm(R), torch.randperm(C)
    permuted = without(
        weight_RC[rows][:, columns],
        INPUTS_CC[columns][:, columns],
        OUTPUTS_RR[rows][:, rows],
        [rows.tolist().index(row) for row in ROWS],
        [columns.tolist().index(column) for column in COLUMNS],
    )
    torch.testing.assert_close(permuted, removed(weight_RC)[rows][:, columns])


def test_damping_is_a_share_of_the_mean_diagonal() -> None:
    factor = torch.tensor([[1.0, 0.5], [0.5, 3.0]])
    assert damped(factor, 0.1).tolist() == [[pytest.approx(1.2), 0.5], [0.5, pytest.approx(3.2)]]
    assert factor[0, 0] == 1.0
    torch.linalg.cholesky(damped(torch.zeros(2, 2), 0.01))  # where nothing flows
