"""Match one expert's hidden units to another's, so that their mean is a mean of like with like.

Shapes: F expert width (hidden units), D hidden size.
"""

from typing import Any

import torch
from torch import Tensor


def align(experts: Any, reference: int, member: int) -> dict[str, Tensor]:
    """The member's tensors with its hidden units permuted to those of the reference that they match best.

    Weight matching as in M-SMoE (arXiv 2310.01334, after Git Re-Basin): the permutation with the largest sum of inner
    products of matched units' weights, in the gate, up and down projections together. What the expert computes does
    not change.
    """
    from scipy.optimize import linear_sum_assignment  # late: a third of a second that few runs need

    num_units = experts.down_proj.shape[1 if experts.is_transposed else 2]
    pairs = zip(_by_unit(experts, reference), _by_unit(experts, member), strict=True)
    similarity_FF = torch.stack([a_FX @ b_FX.T for a_FX, b_FX in pairs]).sum(0)
    _, order = linear_sum_assignment(similarity_FF.cpu().numpy(), maximize=True)
    order_F = torch.from_numpy(order).to(experts.down_proj.device)
    rows = _rows_of_units(experts, order_F, num_units)
    result = {}
    for name, tensor in experts.named_parameters(recurse=False):
        value = tensor.detach()[member]
        if name == "down_proj":
            value = value.index_select(0 if experts.is_transposed else 1, order_F)
        elif name != "down_proj_bias":
            value = value.index_select(-1 if experts.is_transposed else 0, rows)
        result[name] = value
    return result


def _by_unit(experts: Any, expert: int) -> list[Tensor]:
    """The expert's matrices with one row for each hidden unit, in fp32."""
    up = getattr(experts, "gate_up_proj" if experts.has_gate else "up_proj").detach()[expert].float()
    down = experts.down_proj.detach()[expert].float()
    if experts.is_transposed:
        up, down = up.mT, down.mT
    parts = [up]
    if experts.has_gate:
        parts = list(up.chunk(2, dim=0)) if experts.is_concatenated else [up[0::2], up[1::2]]
    return [*parts, down.mT]


def _rows_of_units(experts: Any, order_F: Tensor, num_units: int) -> Tensor:
    """Outputs of the up projection (gate and up halves fused) in the order of the hidden units."""
    if not experts.has_gate:
        return order_F
    if experts.is_concatenated:
        return torch.cat([order_F, order_F + num_units])
    return torch.stack([2 * order_F, 2 * order_F + 1], dim=1).flatten()
