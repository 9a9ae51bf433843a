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


class Lines(NamedTuple):
    """Rows and columns of one matrix; None for all of them."""

    rows: Sequence[int] | None = None
    columns: Sequence[int] | None = None


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
    zeros: Mapping[str, Lines] | None = None
    """Rows, with their biases, and columns that become zero, by the linear's path; shapes stay."""


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


def lines_of(layer: MoELayer, units: Sequence[int] | None, groups: Sequence[int] | None) -> dict[str, Lines]:
    """What of which linear belongs to the named hidden units and groups of heads, by its path."""
    coupled, lines = coupled_of(layer), {}
    if groups is not None:
        assert coupled.heads is not None
        query, key, value, out = coupled.heads
        columns, rows = out_columns(layer, groups), _spans(groups, head_size(layer))
        lines = {query: Lines(columns), key: Lines(rows), value: Lines(rows), out: Lines(columns=columns)}
    if units is not None:
        num_units = _linear(layer, coupled.down).in_features
        for path in coupled.ups:
            halves = range(_linear(layer, path).out_features // num_units)
            lines[path] = Lines([half * num_units + unit for half in halves for unit in units])
        lines[coupled.down] = Lines(columns=list(units))
    return lines


def lost_lines(layer: MoELayer, cut: LayerCut) -> dict[str, Lines]:
    """What a cut takes of which linear; one that loses nothing is not among them."""
    sizes = sizes_of(layer)
    units, groups = _others(sizes.units, cut.units), _others(sizes.groups, cut.groups)
    return {**lines_of(layer, units or None, groups or None), **(cut.zeros or {})}


def _others(number: int, kept: Sequence[int] | None) -> list[int]:
    return [] if kept is None else sorted(set(range(number)) - set(kept))


def cut_(layer: MoELayer, cut: LayerCut) -> None:
    """Takes from a dense layer what its cut does not name; what stays is the layer's bit for bit."""
    for path, lines in lines_of(layer, cut.units, cut.groups).items():
        if lines.rows is not None:
            _cut_rows_(_linear(layer, path), lines.rows)
        if lines.columns is not None:
            _cut_columns_(_linear(layer, path), lines.columns)
    for path, lines in (cut.zeros or {}).items():
        _zero_(_linear(layer, path), lines)
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


def _zero_(linear: nn.Linear, lines: Lines) -> None:
    linear.weight[:, list(lines.columns or ())] = 0
    linear.weight[list(lines.rows or ())] = 0
    if linear.bias is not None:
        linear.bias[list(lines.rows or ())] = 0


def _add_bias_(linear: nn.Linear, bias_O: Tensor) -> None:
    own = torch.zeros_like(linear.weight[:, 0]) if linear.bias is None else linear.bias.detach()
    linear.bias = _parameter((own.float() + bias_O.to(own.device)).to(own.dtype))


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
