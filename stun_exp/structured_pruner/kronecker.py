"""What rows and columns of a matrix cost, and what the rest makes up for them, under a Kronecker-factored Hessian.

The loss grows by 1/2 tr(D^T G D A) when W becomes W + D: G is of the outputs, A of the inputs (K-FAC). Columns are rows
of the transposed problem, with G and A in each other's place.

Shapes: R rows, C columns, P parts of S neighboring columns; both factors are positive definite.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

TINY = 1e-20
"""Damping where nothing flows at all."""


def damped(factor_NN: Tensor, damping: float) -> Tensor:
    """A factor with a share of its mean diagonal added to the diagonal."""
    damped_NN = factor_NN.clone()
    damped_NN.diagonal().add_(damping * factor_NN.diagonal().mean().clamp(min=TINY))
    return damped_NN


def row_costs(weight_RC: Tensor, inputs_CC: Tensor, outputs_RR: Tensor) -> Tensor:
    """By how much the loss grows if one row goes and the others make up for it: 1/2 (W A W^T)_rr / (G^-1)_rr."""
    inverse_R = torch.cholesky_inverse(torch.linalg.cholesky(outputs_RR)).diagonal()
    return (weight_RC @ inputs_CC).mul_(weight_RC).sum(1) / (2 * inverse_R)


def column_costs(weight_RC: Tensor, inputs_CC: Tensor, outputs_RR: Tensor) -> Tensor:
    """By how much the loss grows if one column goes: 1/2 (W^T G W)_cc / (A^-1)_cc."""
    return row_costs(weight_RC.mT, outputs_RR, inputs_CC)


def part_costs(weight_RC: Tensor, inputs_CC: Tensor, outputs_RR: Tensor, num_parts: int, size: int) -> Tensor:
    """By how much the loss grows if one part goes, all of its columns: 1/2 tr((A^-1)_QQ^-1 W_Q^T G W_Q); (P,).

    The parts lie at the beginning of the matrix. The sum over columns, each as if the part's others stayed, is too low:
    they would make up for one another.
    """
    inverse_CC = torch.cholesky_inverse(torch.linalg.cholesky(inputs_CC))[: num_parts * size, : num_parts * size]
    inverse_PSS = inverse_CC.reshape(num_parts, size, num_parts, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    weight_RPS = weight_RC[:, : num_parts * size].reshape(-1, num_parts, size)
    curved_RPS = torch.einsum("qr,rps->qps", outputs_RR, weight_RPS)
    moment_PSS = torch.einsum("rps,rpt->pst", weight_RPS, curved_RPS)
    solved_PSS: Tensor = torch.linalg.solve(inverse_PSS, moment_PSS)
    return solved_PSS.diagonal(dim1=1, dim2=2).sum(-1) / 2


def without_rows(weight_RC: Tensor, outputs_RR: Tensor, rows: Sequence[int]) -> Tensor:
    """The matrix with rows of zeros, and the least growth of the loss that the others can make of it.

    With P the rows that stay, W_P + G_PP^-1 G_PQ W_Q: the same as taking G^-1[:, Q] (G^-1[Q, Q])^-1 W_Q off, without an
    inverse. It does not depend on A, so that rows and then columns are the best that both together can be.
    """
    stays_R = torch.ones(len(weight_RC), dtype=torch.bool, device=weight_RC.device)
    stays_R[list(rows)] = False
    coupling = outputs_RR[stays_R][:, ~stays_R] @ weight_RC[~stays_R]
    root = torch.linalg.cholesky(outputs_RR[stays_R][:, stays_R])
    left_RC = torch.zeros_like(weight_RC)
    left_RC[stays_R] = weight_RC[stays_R] + torch.cholesky_solve(coupling, root)
    return left_RC


def without(
    weight_RC: Tensor, inputs_CC: Tensor, outputs_RR: Tensor, rows: Sequence[int], columns: Sequence[int]
) -> Tensor:
    """The matrix with those rows and columns zero, and the least growth of the loss that the rest can make of it."""
    if rows:
        weight_RC = without_rows(weight_RC, outputs_RR, rows)
    if columns:
        weight_RC = without_rows(weight_RC.mT, inputs_CC, columns).mT
    return weight_RC
