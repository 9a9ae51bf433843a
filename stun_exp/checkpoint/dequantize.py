"""How the weights of a checkpoint are packed, and what they are worth.

Three packings are read: FP8 with a scale for each block (DeepSeek), the 4 bits of bitsandbytes, and MXFP4 (gpt-oss).
Each keeps a weight under several keys, that are its name and a suffix.

Shapes: E experts, O rows and C columns of one matrix, G blocks of 32 weights in a row, P packed bytes.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from stun_exp.checkpoint.nf4 import unpacked

_KNOWN = "fp8 with weight_block_size, bitsandbytes with load_in_4bit, mxfp4"
_TELLING = ("quant_method", "weight_block_size", "load_in_4bit", "load_in_8bit")
_BITSANDBYTES = tuple(
    frozenset({"", ".absmax", ".quant_map", f".quant_state.bitsandbytes__{kind}", *nested})
    for kind in ("nf4", "fp4")
    for nested in ((), (".nested_absmax", ".nested_quant_map"))
)
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Packing:
    """How one checkpoint keeps its tensors; most are plain, also where the others are packed."""

    source: Path
    layouts: tuple[frozenset[str], ...]
    """The sets of suffixes under which a packed weight may be stored; the weight itself may have none."""
    decode: Callable[[dict[str, Tensor]], Tensor]
    """Suffix -> tensor, to the weight; ValueError if they do not fit together."""
    method: str | None = None
    """What config.json calls it; None if nothing is packed."""

    def names(self, keys: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Each tensor's name -> the keys it is stored under; ValueError for a weight that is there in part."""
        suffixes = tuple({suffix for layout in self.layouts for suffix in layout if suffix})
        # Most keys are plain, and there may be a million: only the others are looked at one by one, and tuples of text
        # cost the garbage collector nothing.
        names: dict[str, tuple[str, ...]] = {key: (key,) for key in keys}
        packed = set()
        for key in [key for key in keys if key.endswith(suffixes)]:
            name = key.removesuffix(next(filter(key.endswith, suffixes)))
            names[name] = (*names.get(name, ()), *names.pop(key))
            packed.add(name)
        for name in sorted(packed):
            self._check_whole(name, {key.removeprefix(name) for key in names[name]})
        return names

    def unpack(self, name: str, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The tensor of that name, from what is stored under its keys, in `dtype`; as it is if it holds no floats."""
        try:
            tensor = self._plain(stored[name]) if stored.keys() == {name} else self._decoded(name, stored)
        except ValueError as error:
            raise ValueError(
                f"{self.source}, {name}: {error}; download it again or give the checkpoint in 16 bits"
            ) from error
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def _decoded(self, name: str, stored: Mapping[str, Tensor]) -> Tensor:
        return self.decode({key.removeprefix(name): tensor for key, tensor in stored.items()})

    def _plain(self, tensor: Tensor) -> Tensor:
        if tensor.dtype in _FP8 or (self.layouts and tensor.dtype == torch.uint8):
            raise ValueError(f"it is packed as {tensor.dtype}, and its scales are missing")
        return tensor

    def _check_whole(self, name: str, suffixes: set[str]) -> None:
        if suffixes in self.layouts:
            return
        nearest = min(self.layouts, key=lambda layout: (len(layout ^ suffixes), len(suffixes - layout)))
        missing = sorted(f"{name}{suffix}" for suffix in nearest - suffixes)
        surplus = sorted(f"{name}{suffix}" for suffix in suffixes - nearest)
        raise ValueError(
            f"{self.source / 'config.json'} says that weights are packed, and {name} is not whole: "
            f"missing {', '.join(missing) or 'nothing'}, left over {', '.join(surplus) or 'nothing'}; download it again"
        )


def packing_of(config: Mapping[str, Any], source: Path) -> Packing:
    """How the folder `source`, with that config.json, keeps its tensors; ValueError for a packing that is not read."""
    match config.get("quantization_config"):
        case None:
            return Packing(source, (), _nothing_packed)
        case {"quant_method": "fp8", "weight_block_size": [int() as rows, int() as columns]} if min(rows, columns) > 0:
            return Packing(source, (frozenset({"", "_scale_inv"}),), lambda stored: _fp8(stored, rows, columns), "fp8")
        case {"quant_method": "bitsandbytes", "load_in_4bit": True}:
            return Packing(source, _BITSANDBYTES, _bitsandbytes, "bitsandbytes")
        case {"quant_method": "mxfp4"}:
            return Packing(source, (frozenset({"_blocks", "_scales"}),), _mxfp4, "mxfp4")
        case other:
            said = {key: other[key] for key in _TELLING if key in other} if isinstance(other, Mapping) else other
            raise ValueError(
                f"{source / 'config.json'}: quantization_config with {said} is not supported; known: {_KNOWN}; "
                "give the checkpoint in 16 bits, or packed in one of these ways"
            )


def _nothing_packed(stored: dict[str, Tensor]) -> Tensor:
    raise AssertionError(f"{stored.keys()} of a checkpoint in which nothing is packed")


def _fp8(stored: dict[str, Tensor], block_rows: int, block_columns: int) -> Tensor:
    """Every block times its scale, in fp32; the blocks at the right and bottom edge may be cut off.

    `weight_scale_inv` is what the weights are multiplied by, whatever its name says (DeepSeek-V3, README_WEIGHTS.md).
    Leading dimensions (fused experts) have scales of their own.
    """
    weight_OC, scale = stored[""], stored["_scale_inv"]
    *experts, rows, columns = weight_OC.shape
    wanted = (*experts, ceil(rows / block_rows), ceil(columns / block_columns))
    if scale.shape != wanted or not scale.is_floating_point():
        raise ValueError(f"its scales are {_say(scale)} and should be floats of shape {wanted}")
    scale_OC = scale.float().repeat_interleave(block_rows, -2)[..., :rows, :]
    scale_OC = scale_OC.repeat_interleave(block_columns, -1)[..., :columns]
    return weight_OC.float() * scale_OC


def _bitsandbytes(stored: dict[str, Tensor]) -> Tensor:
    # Slow to import, and most checkpoints need none of it.
    from bitsandbytes.functional import QuantState, dequantize_blockwise

    packed_P = stored.pop("")
    state = QuantState.from_dict(
        {suffix.removeprefix("."): tensor for suffix, tensor in stored.items()}, packed_P.device
    )
    absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    # Machine code reads these without looking at their length.
    weights = prod(state.shape)
    if (packed_P.nbytes, absmax.numel()) != (ceil(weights / 2), ceil(weights / state.blocksize)):
        raise ValueError(f"{packed_P.nbytes} bytes and {absmax.numel()} scales do not make {tuple(state.shape)}")
    return unpacked(packed_P, absmax, state.shape, state.dtype, state.blocksize, state.quant_type)


def _mxfp4(stored: dict[str, Tensor]) -> Tensor:
    """Fused experts (E, C, O) from blocks (E, O, G, 16) and scales (E, O, G), as gpt-oss computes with them.

    Exact: a 4-bit float (E2M1) times a power of two (E8M0) is a bfloat16.
    """
    blocks, scales = stored["_blocks"], stored["_scales"]
    if blocks.dim() != 4 or blocks.shape != (*scales.shape, 16) or {blocks.dtype, scales.dtype} != {torch.uint8}:
        raise ValueError(f"blocks {_say(blocks)} and scales {_say(scales)} are not 16 bytes for each scale")
    weight_ECO: Tensor = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    return weight_ECO


def _say(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
