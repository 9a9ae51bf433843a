"""What is done to the experts and the router of a layer: cut, merged, padded, or given room.

Shapes: E experts, rows of a router's tensor, one for each expert.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stun_exp.moe.align import align

if TYPE_CHECKING:
    from stun_exp.moe.layers import MoELayer

Groups = Sequence[Sequence[int]]


def regroup_(
    layer: "MoELayer", groups: Groups, weights: Sequence[Sequence[float]] | None, align_to: Sequence[int] | None
) -> None:
    """Makes expert i of a layer, router row included, the mean of `groups[i]` (see `MoELayer.regroup`)."""
    shares = weights or [[1 / len(group)] * len(group) for group in groups]
    aligned = _aligned(layer, groups, align_to) if align_to else {}
    for name, tensor in layer.router_tensors().items():
        across = _expert_dim(layer, tensor) == 1
        rows = _means(tensor.detach().mT if across else tensor.detach(), groups, shares, {})
        _set_router_tensor(layer, name, rows.mT.contiguous() if across else rows)
    for name, fused in layer.expert_tensors().items():
        means = _means(fused.detach(), groups, shares, aligned.get(name, {}))
        setattr(layer.experts, name, nn.Parameter(means, requires_grad=False))
    _tell(layer, len(groups))


def pad_(layer: "MoELayer", num_experts: int) -> None:
    """Adds experts of zeros that are never chosen, at the end of each group of the router (see `MoELayer.pad`)."""
    groups = layer.num_groups
    size, wider = layer.num_experts // groups, num_experts // groups
    places_E = torch.tensor([group * wider + place for group in range(groups) for place in range(size)])
    for name, tensor in layer.router_tensors().items():
        value = _lowest(tensor.dtype) if name == layer.family.barring else 0.0
        _set_router_tensor(
            layer, name, _spread(tensor.detach(), _expert_dim(layer, tensor), places_E, num_experts, value)
        )
    for name, fused in layer.expert_tensors().items():
        spread = _spread(fused.detach(), 0, places_E, num_experts, 0.0)
        setattr(layer.experts, name, nn.Parameter(spread, requires_grad=False))
    _tell(layer, num_experts)


def resize_(layer: "MoELayer", num_experts: int) -> None:
    """Gives a layer room for so many experts, on the meta device."""
    for name, tensor in layer.router_tensors().items():
        _set_router_tensor(layer, name, _empty(tensor, _expert_dim(layer, tensor), num_experts))
    for name, fused in layer.expert_tensors().items():
        setattr(layer.experts, name, nn.Parameter(_empty(fused, 0, num_experts), requires_grad=False))
    _tell(layer, num_experts)


def _set_router_tensor(layer: "MoELayer", name: str, value: Tensor) -> None:
    path, _, own_name = name.rpartition(".")
    owner = layer.router.get_submodule(path)
    is_parameter = isinstance(getattr(owner, own_name), nn.Parameter)
    setattr(owner, own_name, nn.Parameter(value, requires_grad=False) if is_parameter else value)
    if hasattr(owner, "out_features"):
        owner.out_features = value.shape[0]


def _expert_dim(layer: "MoELayer", tensor: Tensor) -> int:
    """The dimension of a router's tensor that counts experts; Ernie keeps its biases in a matrix of one row."""
    return 0 if len(tensor) == layer.num_experts else 1


def _tell(layer: "MoELayer", num_experts: int) -> None:
    for owner in (layer.experts, layer.router, layer.block):
        if hasattr(owner, "num_experts"):
            owner.num_experts = num_experts


def _aligned(layer: "MoELayer", groups: Groups, align_to: Sequence[int]) -> dict[str, dict[int, Tensor]]:
    """Tensor name -> expert -> its slice with hidden units in the order of the expert it is merged into."""
    slices: dict[str, dict[int, Tensor]] = {}
    for group, reference in zip(groups, align_to, strict=True):
        for member in (expert for expert in group if expert != reference):
            for name, value in align(layer.experts, reference, member).items():
                slices.setdefault(name, {})[member] = value
    return slices


def _means(tensor: Tensor, groups: Groups, shares: Sequence[Sequence[float]], aligned: dict[int, Tensor]) -> Tensor:
    rows = []
    for group, share in zip(groups, shares, strict=True):
        if len(group) == 1:
            rows.append(tensor[group[0]])
        else:
            members = torch.stack([aligned.get(expert, tensor[expert]).float() for expert in group])
            rows.append(torch.tensordot(members.new_tensor(share), members, dims=1).to(tensor.dtype))
    return torch.stack(rows)


def _spread(tensor: Tensor, dim: int, places_E: Tensor, size: int, value: float) -> Tensor:
    """The tensor's entries at their places along a dimension of `size`, the others filled."""
    wide = tensor.new_full([*tensor.shape[:dim], size, *tensor.shape[dim + 1 :]], value)
    return wide.index_copy_(dim, places_E.to(tensor.device), tensor)


def _lowest(dtype: torch.dtype) -> float:
    """The lowest finite number, also where a tensor of 32 bits is read in bfloat16."""
    return max(torch.finfo(dtype).min, torch.finfo(torch.bfloat16).min)


def _empty(like: Tensor, dim: int, size: int) -> Tensor:
    """Of the same dtype, and shape but for one dimension."""
    return torch.empty([*like.shape[:dim], size, *like.shape[dim + 1 :]], dtype=like.dtype, device="meta")
