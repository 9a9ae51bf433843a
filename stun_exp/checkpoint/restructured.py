"""Writes a dense model with fewer parts: narrower layers, or fewer of them."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stun_exp.checkpoint.architecture import WIDTHS_PER_LAYER, Architecture
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.older_keys import with_older_keys
from stun_exp.checkpoint.shards import INDEX, Shard, write_shard
from stun_exp.checkpoint.source import carried_files
from stun_exp.moe.coupled import LayerCut, coupled_of, head_size, out_columns, sizes_of
from stun_exp.moe.layers import MoELayer
from stun_exp.utils.files import sync_folder, write_file

_BY_LAYER = ("layer_types", "no_rope_layers")
"""Lists in config.json with an entry for each layer."""


def restructured_config(
    source: Checkpoint, cuts: Sequence[LayerCut], dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """config.json of the model that the cuts leave, written in `dtype`, or as any pruned copy of the source is.

    Equal widths are under the architecture's own keys, which stock loaders read; of others we keep a list.
    """
    raw = deepcopy(source.raw)
    for key in ("auto_map", "quantization_config", "torch_dtype"):
        raw.pop(key, None)
    raw["dtype"] = str(dtype or source.written_dtype).removeprefix("torch.")
    kept = [cut for cut in cuts if not cut.dropped]
    raw["num_hidden_layers"] = len(kept)
    for key in _BY_LAYER:
        if isinstance(values := getattr(source.config, key, None), list):
            raw[key] = [values[cut.layer] for cut in kept]
    for path in {path for cut in kept for path in cut.biases or ()}:
        if flag := coupled_of(source.outline(0)).biases.get(path):
            raw[flag] = True
    widths = [_widths(source, cut) for cut in kept]
    if len(set(widths)) == 1:
        raw |= _stock_widths(source, *widths[0])
        raw.pop(WIDTHS_PER_LAYER, None)
    else:
        raw[WIDTHS_PER_LAYER] = [list(pair) for pair in widths]
    return with_older_keys(raw, getattr(source.config, "rope_parameters", None))


def _widths(source: Checkpoint, cut: LayerCut) -> tuple[int, int]:
    """(Hidden units, groups of heads) of a layer that stays."""
    sizes = sizes_of(source.outline(cut.layer))
    units = sizes.units if cut.units is None else len(cut.units)
    return units, sizes.groups if cut.groups is None else len(cut.groups)


def _stock_widths(source: Checkpoint, units: int, groups: int) -> dict[str, Any]:
    layer = source.outline(0)
    coupled = coupled_of(layer)
    widths: dict[str, Any] = {coupled.width_key: units}
    if groups and groups != source.config.num_key_value_heads:
        heads = len(out_columns(layer, [0])) // head_size(layer)  # of a group; the config counts those of equal layers
        widths |= {"num_attention_heads": groups * heads, "num_key_value_heads": groups, "head_dim": head_size(layer)}
    return widths


class RestructuredWriter:
    """Writes a copy of a dense checkpoint whose layers are cut, a shard a layer, for `Checkpoint` to read."""

    def __init__(self, source: Checkpoint, path: Path, config: Mapping[str, Any]):
        """Creates the folder if it is not there; what it holds is written over."""
        self.source = source
        self.path = path
        self.config = dict(config)
        self.target = Architecture(path, dimensions=self.config)
        self.shards: list[Shard] = []
        path.mkdir(exist_ok=True, parents=True)
        sync_folder(path.parent)
        (path / INDEX).unlink(missing_ok=True)  # a folder with an index is whole

    def names(self) -> list[str]:
        """The files that are written, by their names in the folder."""
        shards = [self._name(number) for number in range(self.target.num_layers + 1)]
        return [*shards, *carried_files(self.source.path)[0], "config.json", INDEX]

    def write_layer(self, layer: MoELayer) -> None:
        """The next layer, cut already; biases that it has not, and the architecture now has, are zero."""
        prefix = f"{self.target.paths[len(self.shards)]}."
        own = layer.module.state_dict()
        state = {}
        for name, outline in self.target.outline(len(self.shards)).module.state_dict().items():
            tensor = own.pop(name) if name in own else torch.zeros(outline.shape)
            assert tensor.shape == outline.shape, f"{name}: {tuple(tensor.shape)} for {tuple(outline.shape)}"
            state[prefix + name] = tensor.to(self.target.dtype_of(prefix + name))
        assert not own, f"the architecture has no {', '.join(own)}"
        self._write(self.source.keys.revert(state))

    def finish(self) -> None:
        """Writes what lies outside the layers, what is carried along, config and index."""
        rest = {
            key: tensor.to(self.target.written_dtype_of(self.source.keys.target(key)))
            for key, tensor in self.source.read_rest().items()
        }
        self._write(rest)
        for name in carried_files(self.source.path)[0]:
            (self.path / name).parent.mkdir(exist_ok=True)
            write_file(self.path / name, [(self.source.path / name).read_bytes()])
        self._write_json("config.json", self.config)
        weight_map = {key: shard.name for shard in self.shards for key in shard.keys}
        total = {"total_size": sum(shard.size for shard in self.shards)}
        self._write_json(INDEX, {"metadata": total, "weight_map": weight_map})

    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        shard = write_shard(self.path / self._name(len(self.shards)), tensors)
        self.shards.append(replace(shard, num_experts=0))

    def _write_json(self, name: str, content: Any) -> None:
        write_file(self.path / name, [(json.dumps(content, indent=1) + "\n").encode()])

    def _name(self, number: int) -> str:
        return f"model-{number + 1:05d}-of-{self.target.num_layers + 1:05d}.safetensors"
