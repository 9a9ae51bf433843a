"""A model folder on disk: read one decoder layer at a time, write it back, load what was written.

The only module that knows key names on disk; shards.py knows files. Which key becomes which tensor is transformers' own
conversion table (per-expert keys on disk, fused 3-D experts in memory), applied here to one layer instead of a model.
"""

import json
import re
from collections.abc import Iterable
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from shutil import copyfile, disk_usage
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from stun_exp.moe.families import family_of
from stun_exp.moe.layers import MoELayer, decoder_layers
from stun_exp.shards import INDEX, find_shards, read_json, read_tensors, write_shard

EXPERTS_PER_LAYER = "experts_per_layer"
"""Key in config.json of a pruned model whose layers keep different numbers of experts."""
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")


class Checkpoint:
    """A Hugging Face folder of safetensors, read a decoder layer at a time in one dtype."""

    def __init__(self, path: Path, dtype: torch.dtype | None):
        """Reads config and index, no weights. `dtype` None keeps the one on disk.

        ValueError for a family or format that is not supported, FileNotFoundError for what is missing.
        """
        self.path = path
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{path}: no config.json; give the folder of a Hugging Face checkpoint")
        raw = read_json(path / "config.json")
        if raw.get("quantization_config"):
            raise ValueError(f"{path}: the weights are quantised, which is not supported; give the 16-bit checkpoint")
        self.experts_per_layer: list[int] | None = raw.get(EXPERTS_PER_LAYER)
        self.family = family_of(raw.get("model_type"), path / "config.json")
        self.config = AutoConfig.from_pretrained(path)
        self.files = find_shards(path)
        self.dtype = dtype or getattr(torch, str(raw.get("dtype") or raw.get("torch_dtype") or "float32"))

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The whole model without weights, on the meta device, with as many experts a layer as are on disk."""
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(self.config, dtype=self.dtype)
        model.eval()
        for index, count in enumerate(self.experts_per_layer or ()):
            if count:
                MoELayer(decoder_layers(model)[index], index, self.family).regroup([[e] for e in range(count)])
        return model

    @property
    def num_layers(self) -> int:
        return len(decoder_layers(self.skeleton))

    @property
    def num_parameters(self) -> int:
        """Parameters of the architecture, tied ones once."""
        return sum(parameter.numel() for parameter in self.skeleton.parameters())

    def outline(self, index: int) -> MoELayer:
        """One layer's shapes, on the meta device: for counting. Do not change it."""
        return MoELayer(decoder_layers(self.skeleton)[index], index, self.family)

    def read_layer(self, index: int) -> MoELayer:
        """One decoder layer with its weights, on the CPU; a fresh copy at each call."""
        module = deepcopy(decoder_layers(self.skeleton)[index])
        prefix = f"model.layers.{index}."
        keys = [key for key in self.files if _layer_of(self._names[key]) == index]
        tensors = {name.removeprefix(prefix): tensor for name, tensor in self._convert(keys).items()}
        _fill(module, tensors, f"{self.path}: layer {index}")
        return MoELayer(module, index, self.family)

    def read_router_rows(self, index: int) -> Tensor:
        """One layer's router, (experts, hidden size), and nothing else of the layer."""
        name = f"model.layers.{index}.{self.family.block}.{self.family.router}.weight"
        return self._convert([key for key in self.files if self._names[key] == name])[name]

    def read_rest(self) -> dict[str, Tensor]:
        """Everything outside the decoder layers that run: embeddings, final norm, head, layers beyond the last."""
        return self._read(self._rest)

    def read_shell(self) -> PreTrainedModel:
        """The model without its decoder layers (left on the meta device): embeddings, rotary tables, norm, head."""
        shell = deepcopy(self.skeleton)
        known = shell.state_dict()
        rest = {name: t for name, t in self._convert(self._rest).items() if name in known}
        shell.load_state_dict(rest, strict=False, assign=True)
        shell.tie_weights()
        for module in shell.model.children():
            if module is not decoder_layers(shell) and any(buffer.is_meta for buffer in module.buffers()):
                # Rotary tables are computed, not stored: transformers' own initialiser fills them.
                module.to_empty(device="cpu")
                shell._init_weights(module)
        left = [
            name
            for name, tensor in (*shell.named_parameters(), *shell.named_buffers())
            if tensor.is_meta and _layer_of(name) is None
        ]
        if left:
            raise ValueError(f"{self.path}: no weights on disk for {', '.join(left)}")
        return shell

    def unused_layers(self) -> list[int]:
        """Numbers of layers on disk that the architecture does not run (multi-token prediction)."""
        indices = {_layer_of(name) for name in self._names.values()}
        return sorted(index for index in indices if index is not None and index >= self.num_layers)

    @cached_property
    def _transforms(self) -> tuple[list[WeightRenaming], list[WeightConverter]]:
        transforms = get_model_conversion_mapping(self.skeleton)
        renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
        return renamings, [entry for entry in transforms if isinstance(entry, WeightConverter)]

    @cached_property
    def _names(self) -> dict[str, str]:
        """Key on disk -> name of the tensor in memory that it becomes, or becomes part of."""
        known = self.skeleton.state_dict()
        names = {}
        for key in self.files:
            name, _ = rename_source_key(key, *self._transforms, self.skeleton.base_model_prefix, known)
            names[key] = key if name not in known and key in known else name
        return names

    @cached_property
    def _rest(self) -> list[str]:
        layers = range(self.num_layers)
        return [key for key in self.files if _layer_of(self._names[key]) not in layers]

    def _convert(self, keys: Iterable[str]) -> dict[str, Tensor]:
        renamings, converters = self._transforms
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        pending: dict[str, WeightRenaming | WeightConverter] = {}
        for key, tensor in sorted(self._read(keys).items(), key=lambda item: _natural(item[0])):
            name = self._names[key]
            _, pattern = rename_source_key(key, renamings, converters)
            if pattern is None or name == key:
                transform = pending.setdefault(name, WeightRenaming(key, name))
                pattern = key
            else:
                transform = pending.setdefault(name, deepcopy(by_pattern[pattern]))
            transform.add_tensor(name, key, pattern, tensor)
        tensors: dict[str, Tensor] = {}
        for name, transform in pending.items():
            try:
                converted = transform.convert(name, model=self.skeleton, config=self.config)
            except RuntimeError as error:  # experts whose matrices are not all there cannot be fused
                raise ValueError(
                    f"{self.path}: {name} cannot be put together from what is on disk ({error})"
                ) from error
            for target, value in converted.items():
                tensors[target] = value[0] if isinstance(value, list) else value
        return tensors

    def _read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        return read_tensors(self.files, keys, self.dtype)


class CheckpointWriter:
    """Writes a pruned copy of a checkpoint, one shard a decoder layer, under stock per-expert keys."""

    def __init__(self, source: Checkpoint, path: Path):
        """Creates the folder; OSError if the disk cannot take an unpruned copy."""
        self.source = source
        self.path = path
        needed = sum(tensor.numel() for tensor in source.skeleton.state_dict().values()) * source.dtype.itemsize
        free = disk_usage(path.parent).free
        if free < needed:
            raise OSError(
                f"{path}: the checkpoint needs up to {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free; "
                "free some space or choose another disk with hydra.run.dir=DIR"
            )
        path.mkdir()
        self.weight_map: dict[str, str] = {}
        self.total_size = 0
        self.experts_per_layer: list[int] = []

    def write_layer(self, layer: MoELayer) -> None:
        """Writes one decoder layer; layers must come in order."""
        assert layer.index == len(self.experts_per_layer)
        prefix = f"model.layers.{layer.index}."
        state = {prefix + name: tensor.detach().cpu() for name, tensor in layer.module.state_dict().items()}
        self._write(layer.index, revert_weight_conversion(self.source.skeleton, state))
        self.experts_per_layer.append(layer.num_experts)

    def finish(self) -> None:
        """Writes what lies outside the layers, the index (last of the weights), config and tokenizer."""
        self._write(self.source.num_layers, self.source.read_rest())
        index = {"metadata": {"total_size": self.total_size}, "weight_map": self.weight_map}
        (self.path / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        for file in self.source.path.iterdir():
            carried = file.suffix in {".json", ".txt", ".model", ".jinja"}
            if carried and file.name != "config.json" and not file.name.endswith(".index.json"):
                copyfile(file, self.path / file.name)
        config = read_json(self.source.path / "config.json")
        config.pop("torch_dtype", None)
        config["dtype"] = str(self.source.dtype).removeprefix("torch.")
        # A training setting: it costs memory in every pass, and fails on layers of different sizes.
        config["output_router_logits"] = False
        counts = [count for count in self.experts_per_layer if count]
        if len(set(counts)) == 1:
            config |= dict.fromkeys(self._count_keys(config), counts[0])
            config.pop(EXPERTS_PER_LAYER, None)
        else:
            config[EXPERTS_PER_LAYER] = self.experts_per_layer
        (self.path / "config.json").write_text(json.dumps(config, indent=1) + "\n")

    def _count_keys(self, config: dict[str, Any]) -> set[str]:
        """The expert count's key in `config`: transformers renames it in some families when it saves a model."""
        key, renamed = self.source.family.num_experts_key, self.source.config.attribute_map
        spellings = {key, renamed.get(key, key)} | {old for old, new in renamed.items() if new == key}
        return spellings & config.keys() or {key}

    def _write(self, number: int, tensors: dict[str, Tensor]) -> None:
        name = f"model-{number + 1:05d}-of-{self.source.num_layers + 1:05d}.safetensors"
        self.total_size += write_shard(self.path / name, tensors)
        self.weight_map |= dict.fromkeys(tensors, name)


def load_pruned(path: Path, device: torch.device) -> PreTrainedModel:
    """A written checkpoint as a model ready to run, in its own dtype.

    Folders whose layers keep equally many experts load through stock transformers; the others are built here layer by
    layer, since transformers has no setting for them.
    """
    checkpoint = Checkpoint(path, None)
    if checkpoint.experts_per_layer is None:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=checkpoint.dtype)
    else:
        model = checkpoint.read_shell()
        layers = decoder_layers(model)
        for index in range(checkpoint.num_layers):
            layers[index] = checkpoint.read_layer(index).module
    return model.to(device).eval()


def _layer_of(name: str) -> int | None:
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def _natural(key: str) -> list[Any]:
    """Sort key that puts expert 2 before expert 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]


def _fill(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Puts `tensors` into `module`; ValueError for a missing, surplus or misshapen one."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name in sorted(expected.keys() | tensors.keys()):
        have = tuple(tensors[name].shape) if name in tensors else "missing"
        want = expected.get(name, "no such tensor")
        if have != want:
            raise ValueError(
                f"{where}, {name}: on disk {have}, in the architecture {want}; config and weights disagree"
            )
    module.load_state_dict(tensors, assign=True)
    module.requires_grad_(False)
    meta = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if meta:
        raise ValueError(f"{where}: buffers that are not on disk ({', '.join(meta)}) are not supported")
