"""A model folder on disk, read one decoder layer at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stun_exp.checkpoint.architecture import Architecture
from stun_exp.checkpoint.dequantize import packing_of
from stun_exp.checkpoint.keys import Keys
from stun_exp.checkpoint.scratch import mapped
from stun_exp.checkpoint.shards import INDEX, Header, each_tensor, find_shards
from stun_exp.checkpoint.source import carried_files, check_plain
from stun_exp.moe.layers import MoELayer
from stun_exp.moe.plan import LayerPlan


class Checkpoint(Architecture):
    """A Hugging Face folder of safetensors, quantized or not, read a layer at a time in one dtype."""

    def __init__(self, path: Path, dtype: torch.dtype | None, scratch: Path | None = None):
        """Reads config and index, no weights. `dtype` None keeps the one on disk.

        With `scratch` the experts of a layer that is read lie in a file there, which the system pages in and out, and
        not in memory: a layer may be larger than that.

        ValueError for a family, format or quantization that is not supported and for keys that are not those of the
        architecture, FileNotFoundError for what is missing.
        """
        super().__init__(path, dtype)
        self.scratch = scratch
        self.keeps_dtype = dtype is None
        check_plain(path)
        self.headers = find_shards(path)
        self.files = {key: header.file for key, header in self.headers.items()}
        self.packing = packing_of(self.raw, path)
        self.source_dtype = _most_used(self.headers.values()) or self.source_dtype
        self.stored = self.packing.names(self.files)
        """Each tensor on disk, and the keys that it is stored under: several for a quantized one."""
        for layer in self.outlines:
            layer.check()
        self.keys.check(str(path))
        self._check_kinds()
        self._check_tied()

    @cached_property
    def keys(self) -> Keys:
        return Keys(self, self.stored)

    def identity(self, digest: Callable[[Path], str]) -> dict[str, str]:
        """What tells this folder's content from another's: the digest of each file that it is made of."""
        weights = sorted(set(self.files.values()))
        with ThreadPoolExecutor() as threads:  # one hashes more slowly than a good disk reads
            digests = list(threads.map(digest, weights))
        names = [str(file.relative_to(self.path)) for file in weights]
        return self.companions(digest) | dict(zip(names, digests, strict=True))

    def companions(self, digest: Callable[[Path], str]) -> dict[str, str]:
        """The same without the weights: config and tokenizer."""
        names, _ = carried_files(self.path)
        names += [name for name in ("config.json", INDEX) if (self.path / name).is_file()]
        return {name: digest(self.path / name) for name in names}

    def _check_kinds(self) -> None:
        """ValueError for whole numbers or truth values on disk in the place of weights, which are floats."""
        for name, keys in self.stored.items():
            if len(keys) > 1:  # packed, with scales
                continue
            expected = self.skeleton_dtypes.get(self.keys.target(name))
            if expected is not None and expected.is_floating_point and not _is_float(self.headers[keys[0]]):
                raise ValueError(
                    f"{self.path}: {name} is {self.headers[keys[0]].dtype} on disk, without scales that would make "
                    "weights of it; give the checkpoint in 16 bits, or packed in a way that config.json names"
                )

    def _check_tied(self) -> None:
        """ValueError if config.json ties two tensors that are both on disk and differ.

        Transformers then leaves them apart; tied, they would be another model.
        """
        places = {self.keys.target(key): key for key in self.keys.rest}
        for name, source in self.skeleton.all_tied_weights_keys.items():
            both = places.get(name), places.get(source)
            if None in both or both[0] == both[1]:
                continue
            one, other = self._read(key for key in both if key is not None).values()
            if not torch.equal(one, other):
                raise ValueError(
                    f"{self.path}: config.json says tie_word_embeddings=true, and {both[0]} and {both[1]} are both on "
                    "disk and differ; set it to false (which is how transformers reads the folder), or remove the one "
                    "that is not meant"
                )

    def read_layer(self, index: int, experts: Sequence[int] | None = None) -> MoELayer:
        """One layer with its weights, on the CPU, a fresh copy at each call; with all experts or those named."""
        layer = MoELayer(deepcopy(self.outline(index).module), index, self.family)
        if experts is not None and list(experts) != list(range(layer.num_experts)):
            layer.resize(len(experts))
        else:
            experts = range(layer.num_experts)
        _compute_buffers(self.skeleton, layer.module)
        tensors = self._layer_tensors(layer, experts)
        _fill(layer.module, tensors, f"{self.path}: layer {index}")
        return layer

    def read_planned(self, index: int, plan: LayerPlan | None) -> MoELayer:
        """One layer as the expert stage leaves it: experts that go are not read, unless others are made of them."""
        if plan is None or any(len(group) > 1 for group in plan.groups):
            layer = self.read_layer(index)
            if plan is not None:
                layer.apply(plan)
            return layer
        self.outline(index).check_groups(plan.groups)
        return self.read_layer(index, [expert for (expert,) in plan.groups])

    def copy(self, layer: MoELayer) -> MoELayer:
        """The same layer once more, its experts where those of a layer that is read lie."""
        experts = f"{layer.block_path}.experts."
        copies: dict[int, Any] = {}
        for name, tensor in layer.module.named_parameters():
            if name.startswith(experts):
                copy = self._allocate(tensor).copy_(tensor)
                copies[id(tensor)] = nn.Parameter(copy, requires_grad=False)
        return MoELayer(deepcopy(layer.module, copies), layer.index, layer.family)

    def _layer_tensors(self, layer: MoELayer, experts: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of a layer by their names inside it, experts put straight into their places."""
        prefix = f"{self.paths[layer.index]}."
        places = {expert: place for place, expert in enumerate(experts)}
        shapes = {prefix + name: tensor for name, tensor in layer.module.state_dict().items()}
        single: dict[str, Tensor] = {}
        fused: dict[str, Tensor] = {}
        keys = self.keys.by_layer[layer.index]
        wanted = [key for key in keys if self.keys.expert_of(key) in {None, *places}]
        for key, tensor in self._each(wanted):
            slot = self.keys.slot(key)
            if slot is None:
                single[key] = tensor
                continue
            if slot.target not in fused:
                fused[slot.target] = self._allocate(shapes[slot.target])
            place = fused[slot.target][places[slot.expert]].chunk(slot.parts)[slot.part]
            if place.shape != tensor.shape:
                raise ValueError(
                    f"{self.path}, {key}: on disk {tuple(tensor.shape)}, in the architecture {tuple(place.shape)}; "
                    "config and weights disagree"
                )
            place.copy_(tensor)
        for name, tensor in self.keys.convert(single).items():
            fused[name] = self._of_experts(layer, name.removeprefix(prefix), tensor, experts)
        return {name.removeprefix(prefix): tensor for name, tensor in fused.items()}

    def _of_experts(self, layer: MoELayer, name: str, tensor: Tensor, experts: Sequence[int]) -> Tensor:
        """Of a tensor that holds all experts, in whichever dimension, the entries of those that are read."""
        total = self.outline(layer.index).num_experts
        router = name.removeprefix(f"{layer.router_path}.") in self.family.router_rows
        if len(experts) == total or not (router or name.startswith(f"{layer.block_path}.experts.")):
            return tensor
        return tensor.index_select(0 if len(tensor) == total else 1, torch.tensor(experts))

    def _allocate(self, like: Tensor) -> Tensor:
        """Room for a fused tensor, in memory or in a file that goes with it."""
        if self.scratch is None:
            return torch.empty(like.shape, dtype=like.dtype)
        return mapped(self.scratch, like.shape, like.dtype)

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
        return {name: tensor.clone() for name, tensor in self._each(names)}

    def _each(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensor after tensor under its name on disk, in the dtype of this checkpoint; it may be a view of its file."""
        for name, stored in each_tensor(self.files, {name: self.stored[name] for name in names}):
            target = self.keys.target(name)
            if len(stored) == 1:
                self._check_dtype(name, target, stored[name])
            yield name, self.packing.unpack(name, stored, self.dtype_of(target))

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


def _most_used(headers: Iterable[Header]) -> torch.dtype | None:
    """The dtype of most weights on disk, whatever config.json says of it; None if those are packed."""
    weights: dict[str, int] = {}
    for header in headers:
        weights[header.dtype] = weights.get(header.dtype, 0) + prod(header.shape)
    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    return names.get(max(weights, key=weights.__getitem__, default=""))


def _is_float(header: Header) -> bool:
    return header.dtype.startswith(("F", "BF"))


def _compute_buffers(model: PreTrainedModel, module: nn.Module, recurse: bool = True) -> None:
    """Fills the buffers of a module that are computed, not stored (rotary tables), by transformers' own initializer."""
    for part in module.modules() if recurse else (module,):
        meta = [name for name, buffer in part.named_buffers(recurse=False) if buffer.is_meta]
        for name in meta:
            setattr(part, name, torch.empty_like(part.get_buffer(name), device="cpu"))
        if meta:
            for parameter in part.parameters(recurse=False):
                vars(parameter)["_is_hf_initialized"] = (
                    True  # Gemma's embeddings have weights beside a scale that is computed
                )
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
