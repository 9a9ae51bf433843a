"""SparseGPT's maths: which weights go, and how those that stay make up for them, for many matrices at once.

Shapes: G Hessians treated at once, C inputs, B columns of a block, R rows that share a Hessian, N tokens.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from stun_exp.unstructured_pruner.masks import DEAD, lowest

MOST_DAMPING = 10.0
"""Times the mean of a Hessian's diagonal: where that does not help, the Hessian is none."""

RUN = 16
"""Columns whose errors are handed on one by one before a product hands them on to all others: speed alone."""


class Hessian:
    """Sum over tokens of x x^T, (C, C) in fp32 on the inputs' device; the published factor of 2 / N cancels out.

    Not fp64, which would be twice the memory: after 128 batches rounding is 1e-5 of an entry at worst, and the damping
    that follows is 1e-2 of the diagonal.
    """

    def __init__(self, num_inputs: int):
        self.num_inputs = num_inputs
        self.num_tokens = 0
        self.sum_CC: Tensor | None = None

    def update(self, x_NC: Tensor, gate_N: Tensor | None = None) -> None:
        if len(x_NC) == 0:
            return
        x_NC = x_NC.float()
        if self.sum_CC is None:
            self.sum_CC = x_NC.T @ x_NC
        else:
            self.sum_CC.addmm_(x_NC.T, x_NC)
        self.num_tokens += len(x_NC)

    def is_finite(self) -> bool:
        # No entry is larger than the two of the diagonal in its row and column.
        return self.sum_CC is None or bool(self.sum_CC.diagonal().isfinite().all())

    def total_CC(self) -> Tensor:
        """The sum, of zeros if there was no token."""
        return torch.zeros(self.num_inputs, self.num_inputs) if self.sum_CC is None else self.sum_CC


def factors(
    hessians: Sequence[Hessian], damping: float, device: torch.device, over: Literal["alive", "all"]
) -> tuple[Tensor, Tensor, list[float | None]]:
    """Upper triangular R with H + damping = R R^T, (G, C, C); the inputs alive, (G, C); the damping that each needed.

    H is scaled so that the mean of its diagonal is 1 over the inputs alive, or over `all`. The published code gives a
    dead input a 1 there, in the units of the others; damping is enough, as it meets no other. The damping of an H that
    is not positive definite is raised tenfold until it is; None if `MOST_DAMPING` is not enough.

    The published code factors H^-1 = U^T U, by two factorizations and an inverse. This R is U^-1, and takes one
    factorization: that of H with rows and columns in reverse, read backwards.
    """
    reverse_GCC = torch.stack([hessian.total_CC().to(device).flip(0, 1) for hessian in hessians])
    diagonal_GC = reverse_GCC.diagonal(dim1=1, dim2=2)
    alive_GC = diagonal_GC > 0
    mean_G = diagonal_GC.sum(1) / (alive_GC if over == "alive" else torch.ones_like(alive_GC)).sum(1).clamp_min(1)
    reverse_GCC /= torch.where(mean_G > 0, mean_G, 1)[:, None, None]
    diagonal_GC += damping
    lower_GCC, failed_G = torch.linalg.cholesky_ex(reverse_GCC)
    used: list[float | None] = [damping] * len(hessians)
    for g in failed_G.nonzero().flatten().tolist():
        now, failed = damping, True
        while failed and now * 10 <= MOST_DAMPING:
            diagonal_GC[g] += 9 * now
            now *= 10
            lower_GCC[g], info = torch.linalg.cholesky_ex(reverse_GCC[g])
            failed = bool(info)
        used[g] = None if failed else now
    del reverse_GCC, diagonal_GC
    return lower_GCC.flip(1, 2), alive_GC.flip(1), used


def prune_by_hessian(
    weight_GCR: Tensor,
    factor_GCC: Tensor,
    alive_GC: Tensor,
    matrices: Sequence[tuple[int, float]],
    block_size: int,
    m: int | None,
) -> Tensor:
    """The pruned weights, (G, C, R), columns first; uses up `weight_GCR`.

    `matrices` are the number of rows, and the ratio, of each of the matrices that lie side by side in R. With `m`
    the lowest of every m neighbors go, chosen when their turn comes; else the lowest of each block of columns, all
    rows of a matrix together, when the block's turn comes. Saliency is |w_i| / U_ii. Dead inputs lose their weights
    first, the smallest before others, but no more than the asked number goes.

    Published, with U = R^-1: from left to right, a column's error e_i = (w_i - q_i) / U_ii, q_i being w_i or 0, moves
    the columns to its right by -e_i U_ij. So Q = W - E U and E = (W - Q) R, and when the columns A to the left of a
    block B are done, those of B have become W_B - E_A U_AB = W_B + (W - Q)_A R_AB U_BB. That needs no more of U than
    its blocks on the diagonal.
    """
    worth_GC = torch.where(alive_GC, factor_GCC.diagonal(dim1=1, dim2=2), DEAD)
    kept_GCR = torch.empty_like(weight_GCR)
    moved_GCR = weight_GCR  # W - Q in the columns done, W in the others
    for start in range(0, weight_GCR.shape[1], block_size):
        block = slice(start, start + block_size)
        factor_GBB = factor_GCC[:, block, block]
        unit_BB = torch.eye(factor_GBB.shape[1], device=factor_GBB.device)
        inverse_GBB = torch.linalg.solve_triangular(factor_GBB, unit_BB, upper=True)
        carry_GAB = factor_GCC[:, :start, block] @ inverse_GBB
        now_GBR = torch.baddbmm(weight_GCR[:, block], carry_GAB.mT, moved_GCR[:, :start])
        kept_GCR[:, block] = _prune_block(now_GBR, inverse_GBB, worth_GC[:, block], matrices, start, m)
        moved_GCR[:, block] -= kept_GCR[:, block]
    return kept_GCR


def _prune_block(
    now_GBR: Tensor,
    inverse_GBB: Tensor,
    worth_GB: Tensor,
    matrices: Sequence[tuple[int, float]],
    start: int,
    m: int | None,
) -> Tensor:
    """The pruned columns of one block, (G, B, R), from the weights before it; uses up `now_GBR`."""
    # What a column loses, times U_ij / U_ii, is taken from those to its right.
    carry_GBB = inverse_GBB / inverse_GBB.diagonal(dim1=1, dim2=2)[:, :, None]
    lost_GBR = torch.zeros_like(now_GBR)
    mask_GBR = torch.zeros_like(now_GBR, dtype=torch.bool)
    if m is None:
        mask_GBR = _lowest_of_block(now_GBR.abs() * worth_GB[:, :, None], matrices, start)
    width = now_GBR.shape[1]
    for first in range(0, width, m or RUN):
        run = slice(first, min(first + (m or RUN), width))
        _receive_(now_GBR, carry_GBB, lost_GBR, slice(0, first), run)
        if m is not None:
            mask_GBR[:, run] = _lowest_of_neighbors(now_GBR[:, run].abs() * worth_GB[:, run, None], matrices)
        for i in range(run.start, run.stop):
            _receive_(now_GBR, carry_GBB, lost_GBR, slice(first, i), slice(i, i + 1))
            torch.mul(now_GBR[:, i], mask_GBR[:, i], out=lost_GBR[:, i])
    return now_GBR.sub_(lost_GBR)  # exactly 0 where masked, and faster than masked_fill_


def _receive_(now_GBR: Tensor, carry_GBB: Tensor, lost_GBR: Tensor, given: slice, to: slice) -> None:
    """Takes from the columns `to` what the columns `given` have lost, as far as it concerns them."""
    if given.start < given.stop:
        now_GBR[:, to].baddbmm_(carry_GBB[:, given, to].mT, lost_GBR[:, given], alpha=-1)


def _lowest_of_block(saliency_GBR: Tensor, matrices: Sequence[tuple[int, float]], start: int) -> Tensor:
    """Mask (G, B, R) of each matrix's share of this block; the rounded counts of all blocks add up to the whole's."""
    groups, width, _ = saliency_GBR.shape
    masks = []
    pieces: Sequence[Tensor] = saliency_GBR.split_with_sizes([rows for rows, _ in matrices], 2)
    for saliency_GBO, (rows, ratio) in zip(pieces, matrices, strict=True):
        number = round(rows * (start + width) * ratio) - round(rows * start * ratio)
        # A row of `lowest` is a matrix here, and all of them give the same number.
        mask_GX = lowest(saliency_GBO.reshape(groups, -1), number / (width * rows))
        masks.append(mask_GX.view(groups, width, rows))
    return torch.cat(masks, 2)


def _lowest_of_neighbors(saliency_GMR: Tensor, matrices: Sequence[tuple[int, float]]) -> Tensor:
    """Mask (G, M, R) of the `ratio` M lowest (rounded) of the M columns, in each row; ties to the lower column."""
    rank_GMR = saliency_GMR.argsort(dim=1, stable=True).argsort(dim=1)
    number_R = [round(ratio * saliency_GMR.shape[1]) for rows, ratio in matrices for _ in range(rows)]
    return rank_GMR < torch.tensor(number_R, device=rank_GMR.device)
