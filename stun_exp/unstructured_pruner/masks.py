"""Exact masks of the lowest entries, and the input statistic that Wanda's family shares.

Shapes: R rows that are compared within themselves, C columns, N tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

DEAD = 1e-20
"""Norm of an input that was always zero: far below any real one, far above fp32's smallest number."""


class SquaredNorm:
    """Sum over tokens of each input squared, (C,) in fp64 on the inputs' device.

    `gated` multiplies the inputs of each token with the router's weight for it, where there is one.
    """

    def __init__(self, num_inputs: int, gated: bool = False):
        self.num_inputs = num_inputs
        self.gated = gated
        self.num_tokens = 0
        self.sum_C: Tensor | None = None

    def update(self, x_NC: Tensor, gate_N: Tensor | None = None) -> None:
        if len(x_NC) == 0:
            return
        square_NC = x_NC.float().square()
        if self.gated and gate_N is not None:
            square_NC *= gate_N.float().square()[:, None]
        sum_C = square_NC.sum(0).double()
        self.sum_C = sum_C if self.sum_C is None else self.sum_C + sum_C
        self.num_tokens += len(x_NC)

    def is_finite(self) -> bool:
        return self.sum_C is None or bool(self.sum_C.isfinite().all())

    def norm_C(self, per_token: bool = False) -> Tensor:
        """L2 norm of each input over all tokens, fp32, and next to nothing for an input that was always zero.

        Next to nothing and not zero, so that among the weights of dead inputs their magnitude decides, and not their
        place in the row; above all where every input is dead, in an expert that no token reached. `per_token` is the
        root of the mean square instead.
        """
        sum_C = torch.zeros(self.num_inputs) if self.sum_C is None else self.sum_C
        if per_token:
            sum_C = sum_C / max(self.num_tokens, 1)
        return sum_C.sqrt().float().clamp_min(DEAD)


def lowest_in_group(saliency_OC: Tensor, ratio: float, group: str) -> Tensor:
    """Mask (O, C) of the share `ratio` of a matrix: its lowest entries as compared by `group`, exact in number.

    `cumulative` is Wanda's variant: with a row's entries in ascending order, an entry stands for the share of the row's
    sum that it and those before it make up, and these shares are compared over the whole matrix. The published code
    searches for the share alpha at which the count is about right.
    """
    if group == "row":
        return lowest(saliency_OC, ratio)
    if group == "cumulative":
        ascending = saliency_OC.sort(dim=1, stable=True)
        sum_OC = ascending.values.double().cumsum(1)
        share_OC = sum_OC / sum_OC[:, -1:].clamp_min(torch.finfo(torch.float64).tiny)
        saliency_OC = torch.empty_like(share_OC).scatter_(1, ascending.indices, share_OC)
    # One row of all weights: compared within the matrix, ties to the lower index.
    return lowest(saliency_OC.reshape(1, -1), ratio).view_as(saliency_OC)


def lowest_together(saliencies: Sequence[Tensor], number: float) -> list[Tensor]:
    """A mask for each matrix: together the lowest `number` (rounded) of the entries of all of them."""
    together_1X = torch.cat([saliency.flatten() for saliency in saliencies])[None]
    mask_X = lowest(together_1X, round(number) / together_1X.numel())[0]
    pieces = torch.split(mask_X, [saliency.numel() for saliency in saliencies])
    return [piece.view_as(saliency) for piece, saliency in zip(pieces, saliencies, strict=True)]


def lowest_of_neighbors(saliency_OC: Tensor, ratio: float, m: int) -> Tensor:
    """Mask (O, C) of the `ratio` m lowest (rounded) of every m neighboring inputs, ties to the lower column."""
    rows, columns = saliency_OC.shape
    assert columns % m == 0
    lowest_first = saliency_OC.view(rows, columns // m, m).argsort(dim=2, stable=True)
    mask = torch.zeros_like(lowest_first, dtype=torch.bool)
    return mask.scatter_(2, lowest_first[:, :, : round(ratio * m)], True).view(rows, columns)


def lowest(saliency_RC: Tensor, sparsity: float) -> Tensor:
    """Mask (R, C) of the share `sparsity` of entries: the lowest of each row, ties to the lower column.

    Every row gets floor(C * sparsity); the entries that the floor leaves over, so that the total is exact, come one
    each from the rows whose next entry is lowest. The masks are nested as `sparsity` rises.
    """
    rows, columns = saliency_RC.shape
    total = round(rows * columns * sparsity)
    each, rest = divmod(total, rows)
    if total == rows * columns:
        return torch.ones_like(saliency_RC, dtype=torch.bool)
    if total == 0:
        return torch.zeros_like(saliency_RC, dtype=torch.bool)
    # The (each+1)-th lowest entry of a row: what lies below it goes, and itself too in the rows that give one more.
    next_R = _order_statistic(saliency_RC, each)
    wanted_R = torch.full((rows,), each, device=saliency_RC.device)
    wanted_R[next_R.argsort(stable=True)[:rest]] += 1
    mask_RC = saliency_RC < next_R[:, None]
    short_R = wanted_R - _count(mask_RC)
    tied = short_R.nonzero().squeeze(1)
    if len(tied):
        equal_RC = saliency_RC[tied] == next_R[tied, None]
        mask_RC[tied] |= equal_RC & (equal_RC.cumsum(1) <= short_R[tied, None])
    return mask_RC


def _order_statistic(saliency_RC: Tensor, rank: int) -> Tensor:
    """The entry of each row with `rank` entries before it in ascending order."""
    if saliency_RC.is_cuda:
        return saliency_RC.kthvalue(rank + 1, dim=1).values
    # numpy's vectorized partition selects several times faster than torch's kthvalue on a CPU.
    return torch.from_numpy(np.partition(saliency_RC.numpy(), rank, axis=1)[:, rank])


def _count(mask_RC: Tensor) -> Tensor:
    """Number of true entries of each row."""
    # As above: on a CPU numpy counts booleans several times faster than torch sums them.
    return mask_RC.sum(1) if mask_RC.is_cuda else torch.from_numpy(np.count_nonzero(mask_RC.numpy(), axis=1))
