"""A linear with the curvature of the loss in its weights: what its rows and columns cost, and how they are removed.

Shapes: R rows (outputs), C columns (inputs; a bias is one more).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from stun_exp.moe.layers import MoELayer
from stun_exp.moe.observe import Statistic, one
from stun_exp.structured_pruner.curvature import Kfac
from stun_exp.structured_pruner.kronecker import column_costs, damped, part_costs, row_costs, without


class CurvedLinear:
    """A linear that is cut into by the curvature that was measured."""

    def __init__(
        self, linear: nn.Linear, factors: Callable[[], tuple[Tensor, Tensor]], damping: float, zeros_stay: bool
    ):
        """`factors` gives A, with a row and column for a bias if there is one, and G.

        With `zeros_stay` rows and columns that are zero already are left out: they cost NaN, and stay zero.
        """
        self.linear = linear
        self._factors = factors
        self._damping = damping
        whole_RC = linear.weight.detach()
        if linear.bias is not None:
            whole_RC = torch.cat([whole_RC, linear.bias.detach()[:, None]], dim=1)
        self._whole_RC = whole_RC
        self.live_R = whole_RC.any(1) | (not zeros_stay)
        self.live_C = whole_RC.any(0) | (not zeros_stay)
        self.live_C[linear.in_features :] = True  # a bias may become one

    def part_costs(self, num_parts: int) -> Tensor:
        """What each of so many equal parts of its columns costs, if all of a part's columns go."""
        with self._invertible():
            problem = self._problem()
            assert problem is not None, "zeros are not left out"
            return part_costs(*problem, num_parts, self.linear.in_features // num_parts)

    def row_costs(self) -> Tensor:
        """What each row costs, with its bias; (R,)."""
        return self._costs(self.live_R, row_costs)

    def column_costs(self) -> Tensor:
        """What each column costs, a bias left out; (C,)."""
        return self._costs(self.live_C, column_costs)[: self.linear.in_features]

    def remove_(self, rows: Sequence[int], columns: Sequence[int]) -> None:
        """Makes rows and columns of the linear zero, and of all others what costs the least with these."""
        problem = self._problem()
        if problem is None:
            return
        with self._invertible():
            left = without(*problem, _among(self.live_R, rows), _among(self.live_C, columns))
        whole_RC = torch.zeros_like(self._whole_RC)
        whole_RC[self.live_R.nonzero(), self.live_C.nonzero()[:, 0]] = left.to(whole_RC.dtype)
        self.linear.weight.copy_(whole_RC[:, : self.linear.in_features])
        if self.linear.bias is not None:
            self.linear.bias.copy_(whole_RC[:, -1])

    def _costs(self, live_N: Tensor, of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        problem = self._problem()
        if problem is None:
            return torch.full(live_N.shape, torch.nan, device=live_N.device)
        costs_N = problem[0].new_full(live_N.shape, torch.nan)
        with self._invertible():
            costs_N[live_N] = of(*problem)
        return costs_N

    def _problem(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """(Weights, A, G), damped, without what is left out; None if that is all."""
        if not (self.live_R.any() and self.live_C.any()):
            return None
        # Made anew for each use: the factors of a layer take more room than it.
        inputs_CC, outputs_RR = (factor.to(self._whole_RC.device) for factor in self._factors())
        inputs_CC = damped(inputs_CC[self.live_C][:, self.live_C], self._damping)
        outputs_RR = damped(outputs_RR[self.live_R][:, self.live_R], self._damping)
        return self._whole_RC[self.live_R][:, self.live_C].to(inputs_CC.dtype), inputs_CC, outputs_RR

    @contextmanager
    def _invertible(self) -> Iterator[None]:
        try:
            yield
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ValueError(
                f"structured_pruner.damping={self._damping:g}: the curvature cannot be inverted with so little; pass "
                f"structured_pruner.damping={10 * self._damping:g}"
            ) from error


def curved_of(
    layer: MoELayer, statistics: Sequence[Statistic], damping: float, zeros_stay: bool
) -> dict[str, CurvedLinear]:
    """The linears of a layer whose curvature was measured, by their paths."""
    kfac = one(Kfac, statistics)
    linears = {path: linear for path, linear in layer.linears() if path in kfac.feeds}
    return {
        path: CurvedLinear(linear, partial(kfac.factors, path, linear.bias is not None), damping, zeros_stay)
        for path, linear in linears.items()
    }


def _among(live_N: Tensor, places: Sequence[int]) -> list[int]:
    """Where those of some places that are live are among all that are."""
    rank_N = live_N.cumsum(0) - 1
    return [int(rank_N[place]) for place in places if live_N[place]]
