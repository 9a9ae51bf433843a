"""Exact masks of the lowest entries, and the input statistic that Wanda's family shares.

Shapes: R rows that are compared within themselves, C columns, N tokens.
"""

import numpy as np
import torch
from torch import Tensor

DEAD = 1e-20
"""Norm of an input that was always zero: far below any real one, far above fp32's smallest number."""


class SquaredNorm:
    """Sum over tokens of each input squared, (C,) in fp64 on the inputs' device."""

    def __init__(self, num_inputs: int):
        self.num_inputs = num_inputs
        self.num_tokens = 0
        self.sum_C: Tensor | None = None

    def update(self, x_NC: Tensor) -> None:
        if len(x_NC) == 0:
            return
        squared_C = x_NC.float().square().sum(0).double()
        self.sum_C = squared_C if self.sum_C is None else self.sum_C + squared_C
        self.num_tokens += len(x_NC)

    def norm_C(self) -> Tensor:
        """L2 norm of each input over all tokens, fp32, and next to nothing for an input that was always zero.

        Next to nothing and not zero, so that among the weights of dead inputs their magnitude decides, and not their
        place in the row; above all where every input is dead, in an expert that no token reached.
        """
        sum_C = torch.zeros(self.num_inputs) if self.sum_C is None else self.sum_C
        return sum_C.sqrt().float().clamp_min(DEAD)


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
    # numpy's vectorised partition selects several times faster than torch's kthvalue on a CPU.
    return torch.from_numpy(np.partition(saliency_RC.numpy(), rank, axis=1)[:, rank])


def _count(mask_RC: Tensor) -> Tensor:
    """Number of true entries of each row."""
    # As above: on a CPU numpy counts booleans several times faster than torch sums them.
    return mask_RC.sum(1) if mask_RC.is_cuda else torch.from_numpy(np.count_nonzero(mask_RC.numpy(), axis=1))
