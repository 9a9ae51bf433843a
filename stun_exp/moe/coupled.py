"""Parts of a dense layer that go as a whole: hidden units of its feed-forward, and groups of attention heads.

Shapes: O rows (outputs) and C columns (inputs) of one matrix, F hidden units, G groups of heads, H heads of a group, S
size of a head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stun_exp.moe.families import Coupled
from stun_exp.moe.layers import MoELayer


class Sizes(NamedTuple):
    """How many parts a layer has, and the weights that go with one of each kind."""

    units: int
    unit_weights: int
    groups: int
    """0 where attention is left whole."""
    group_weights: int


@dataclass(frozen=True)
class LayerCut:
    """What of one dense layer stays."""

    layer: int
    units: Sequence[int] | None = None
    """The hidden units that stay; None for all."""
    groups: Sequence[int] | None = None
    """The groups of heads that stay; None for all."""
    dropped: bool = False
    """Whether the whole layer goes."""
    biases: Mapping[str, Tensor] | None = None
    """What stands in for the mean of what went: added to the bias of the linear of that path."""


def coupled_of(layer: MoELayer) -> Coupled:
    """Where the layer's parts are; ValueError for a family that has none in the table."""
    coupled = layer.family.coupled
    if coupled is None:
        raise ValueError(
            f"structured_pruner: no parts of model_type={layer.family.model_type} are known that can go as a whole; "
            "pass structured_pruner=none"
        )
    return coupled


def sizes_of(layer: MoELayer) -> Sizes:
    """The parts of a dense layer; an outline will do."""
    coupled = coupled_of(layer)
    down = _linear(layer, coupled.down)
    ups = sum(_linear(layer, path).weight.numel() for path in coupled.ups)
    units = down.in_features
    if coupled.heads is None:
        return Sizes(units, (ups + down.weight.numel()) // units, 0, 0)
    groups = _linear(layer, coupled.heads[1]).out_features // head_size(layer)
    weights = sum(_linear(layer, path).weight.numel() for path in coupled.heads)
    return Sizes(units, (ups + down.weight.numel()) // units, groups, weights // groups)


def head_size(layer: MoELayer) -> int:
    """The size of a head: in attention, of a row that belongs to one."""
    attention: Any = layer.module.get_submodule(_attention(layer))
    return int(attention.head_dim)


def out_columns(layer: MoELayer, groups: Sequence[int]) -> list[int]:
    """The columns of the heads' output that belong to the named groups: all heads that share keys and values."""
    coupled = coupled_of(layer)
    assert coupled.heads is not None
    size = _linear(layer, coupled.heads[3]).in_features // sizes_of(layer).groups
    return _spans(groups, size)


def cut_(layer: MoELayer, cut: LayerCut) -> None:
    """Takes from a dense layer what its cut does not name; what stays is the layer's bit for bit."""
    coupled = coupled_of(layer)
    if cut.groups is not None:
        assert coupled.heads is not None
        query, key, value, out = (_linear(layer, path) for path in coupled.heads)
        columns = out_columns(layer, cut.groups)
        rows = _spans(cut.groups, head_size(layer))
        _cut_rows_(query, columns)
        for linear in (key, value):
            _cut_rows_(linear, rows)
        _cut_columns_(out, columns)
    if cut.units is not None:
        num_units = _linear(layer, coupled.down).in_features
        for path in coupled.ups:
            linear = _linear(layer, path)
            halves = linear.out_features // num_units
            _cut_rows_(linear, [half * num_units + unit for half in range(halves) for unit in cut.units])
        _cut_columns_(_linear(layer, coupled.down), list(cut.units))
    for path, bias_O in (cut.biases or {}).items():
        _add_bias_(_linear(layer, path), bias_O)


def resize_(layer: MoELayer, units: int, groups: int) -> None:
    """Makes room for so many parts, without weights, in a layer on the meta device."""
    cut_(layer, LayerCut(layer.index, range(units), range(groups) if groups else None))


def _attention(layer: MoELayer) -> str:
    coupled = coupled_of(layer)
    assert coupled.heads is not None
    return coupled.heads[0].rpartition(".")[0]


def _linear(layer: MoELayer, path: str) -> nn.Linear:
    linear = layer.module.get_submodule(path)
    assert isinstance(linear, nn.Linear)
    return linear


def _spans(indices: Sequence[int], size: int) -> list[int]:
    return [index * size + offset for index in indices for offset in range(size)]


def _cut_rows_(linear: nn.Linear, rows: Sequence[int]) -> None:
    index = torch.tensor(rows, device=linear.weight.device)
    linear.weight = _parameter(linear.weight.detach()[index])
    if linear.bias is not None:
        linear.bias = _parameter(linear.bias.detach()[index])
    linear.out_features = len(rows)


def _cut_columns_(linear: nn.Linear, columns: Sequence[int]) -> None:
    index = torch.tensor(columns, device=linear.weight.device)
    linear.weight = _parameter(linear.weight.detach()[:, index].contiguous())
    linear.in_features = len(columns)


def _add_bias_(linear: nn.Linear, bias_O: Tensor) -> None:
    own = torch.zeros_like(linear.weight[:, 0]) if linear.bias is None else linear.bias.detach()
    linear.bias = _parameter((own.float() + bias_O.to(own.device)).to(own.dtype))


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
