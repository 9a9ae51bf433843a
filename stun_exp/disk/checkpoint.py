"""A model folder on disk, read one decoder layer at a time."""

from collections.abc import Iterable
from copy import deepcopy
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stun_exp.disk.architecture import Architecture
from stun_exp.disk.dequantise import packing_of
from stun_exp.disk.keys import Keys
from stun_exp.disk.shards import find_shards, read_tensors
from stun_exp.moe.layers import MoELayer


class Checkpoint(Architecture):
    """A Hugging Face folder of safetensors, quantised or not, read a layer at a time in one dtype."""

    def __init__(self, path: Path, dtype: torch.dtype | None):
        """Reads config and index, no weights. `dtype` None keeps the one on disk.

        ValueError for a family, format or quantisation that is not supported and for keys that are not those of the
        architecture, FileNotFoundError for what is missing.
        """
        super().__init__(path, dtype)
        self.keeps_dtype = dtype is None
        self.files = find_shards(path)
        self.packing = packing_of(self.raw, path)
        self.stored = self.packing.names(self.files)
        """Each tensor on disk, and the keys that it is stored under: several for a quantised one."""
        for layer in self.outlines:
            layer.check()
        self.keys.check(str(path))

    @cached_property
    def keys(self) -> Keys:
        return Keys(self, self.stored)

    def read_layer(self, index: int) -> MoELayer:
        """One decoder layer with its weights, on the CPU; a fresh copy at each call."""
        module = deepcopy(self.outline(index).module)
        prefix = f"{self.paths[index]}."
        tensors = self.keys.convert(self._read(self.keys.by_layer[index]))
        _compute_buffers(self.skeleton, module)
        inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        _fill(module, inside, f"{self.path}: layer {index}")
        return MoELayer(module, index, self.family)

    def read_router_rows(self, index: int) -> Tensor:
        """One layer's router, (experts, hidden size), and nothing else of the layer."""
        layer = self.outline(index)
        name = f"{layer.router_path}.{self.family.router_rows[0]}"
        return self.keys.convert(self._read(self.keys.named(name, index)))[f"{self.paths[index]}.{name}"]

    def read_rest(self) -> dict[str, Tensor]:
        """Everything outside the layers that run: embeddings, final norm, head, and what never runs."""
        return self._read([*self.keys.rest, *(key for part in self.keys.unused.values() for key in part)])

    def read_shell(self) -> PreTrainedModel:
        """The model without its layers (left on the meta device): embeddings, rotary tables, norms, head."""
        shell = deepcopy(self.skeleton)
        shell.load_state_dict(self.keys.convert(self._read(self.keys.rest)), strict=False, assign=True)
        shell.tie_weights()
        layers = tuple(f"{path}." for path in self.paths)
        for name, module in shell.named_modules():
            if not f"{name}.".startswith(layers):
                _compute_buffers(shell, module, recurse=False)
        return shell

    def _read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors under their names on disk, in the dtype of this checkpoint."""
        keys = {name: self.stored[name] for name in names}
        raw = read_tensors(self.files, (key for parts in keys.values() for key in parts))
        tensors = {}
        for name, parts in keys.items():
            target = self.keys.target(name)
            if len(parts) == 1:
                self._check_dtype(name, target, raw[name])
            tensors[name] = self.packing.unpack(name, {key: raw.pop(key) for key in parts}, self.dtype_of(target))
        return tensors

    def _check_dtype(self, name: str, target: str, tensor: Tensor) -> None:
        """ValueError if the dtype on disk is to be kept, and is not the one that the config says.

        Small tensors and routers may be of another: many models keep those in 32 bits.
        """
        router = f".{self.family.router}." in target
        if not self.keeps_dtype or router or tensor.ndim < 2 or not tensor.is_floating_point():
            return
        if tensor.dtype not in (self.dtype, self.dtype_of(target)):
            have, say = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, self.dtype))
            raise ValueError(
                f"{self.path}: {name} is {have} on disk, and config.json says {say}; model.dtype=auto keeps one dtype: "
                f"pass model.dtype={say} or model.dtype={have}"
            )


def _compute_buffers(model: PreTrainedModel, module: nn.Module, recurse: bool = True) -> None:
    """Fills the buffers of a module that are computed, not stored (rotary tables), by transformers' own initialiser."""
    for part in module.modules() if recurse else (module,):
        meta = [name for name, buffer in part.named_buffers(recurse=False) if buffer.is_meta]
        for name in meta:
            setattr(part, name, torch.empty_like(part.get_buffer(name), device="cpu"))
        if meta:
            model._init_weights(part)


def _fill(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Puts `tensors` into `module`; ValueError for one of another shape."""
    for name, expected in module.state_dict().items():
        have, want = tuple(tensors[name].shape), tuple(expected.shape)
        if have != want:
            raise ValueError(
                f"{where}, {name}: on disk {have}, in the architecture {want}; config and weights disagree"
            )
    module.load_state_dict(tensors, assign=True)
    module.requires_grad_(False)
