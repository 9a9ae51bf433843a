"""Four-bit NF4 for decoder layers in memory: attention, feed-forward and fused experts, and the bytes they take.

transformers' own loading in 4 bits takes linears only and leaves fused experts in 16 bits without a word; here both go
the same way. NF4 (Dettmers et al. 2023, "QLoRA", section 3) holds weights as 4-bit indices into the quantiles of a
normal distribution, 64 of them scaled by their largest magnitude in fp32; the arithmetic is bitsandbytes'.

Shapes: P bytes of a packed tensor, two weights in each, in the order in which the weights lie in memory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from math import ceil, inf, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stun_exp.moe.layers import MoELayer

BLOCK = 64
"""Weights that share one scale."""
_MATRIX_DIMENSIONS = {"attention": 2, "mlp": 2, "experts": 3, "rest": inf}
_AT_ONCE = 1 << 30  # bitsandbytes counts weights in 32 bits, and the experts of one Arctic layer are more than that


def quantize_(layer: MoELayer) -> None:
    """Holds a layer's linears and fused experts in NF4 from now on; routers, gates, norms and biases stay as they are.

    For running only: `matrices()` and `regroup()` need the layer's own weights.
    """
    for owner, name in list(_weights(layer)):
        packed_P, unpack = _pack(getattr(owner, name))
        setattr(owner, name, nn.Parameter(packed_P, requires_grad=False))
        parametrize.register_parametrization(owner, name, unpack, unsafe=True)
    if layer.is_moe:
        layer.experts.forward = _unpacking_once(layer.experts.forward)


@contextmanager
def as_quantized(layer: MoELayer) -> Iterator[None]:
    """Inside the block the layer computes what it would if held in NF4; after it, its own weights are back.

    They are the same storage: views taken before the block (`matrices()`) stay valid, and show the full weights also
    inside it. Takes the memory of the layer's weights once more.
    """
    own = [(parameter := getattr(owner, name), parameter.data) for owner, name in _weights(layer)]
    try:
        for parameter, weight in own:
            packed_P, unpack = _pack(weight)
            parameter.data = unpack(packed_P)
        yield
    finally:
        for parameter, weight in own:
            parameter.data = weight


def unpacked(
    packed_P: Tensor, absmax: Tensor, shape: Sequence[int], dtype: torch.dtype, block: int = BLOCK, kind: str = "nf4"
) -> Tensor:
    """The weights that bitsandbytes packed in 4 bits (`kind` nf4 or fp4), each `block` of them with one fp32 scale."""
    import bitsandbytes  # noqa: F401 (it brings its operators; slow to import, and most runs need none of it)

    pieces = [
        # As one long row: bitsandbytes' AVX-512 code reads the wrong scales if rows do not hold whole blocks.
        torch.ops.bitsandbytes.dequantize_4bit(bytes_P, scales, block, kind, [2 * len(bytes_P)], dtype).flatten()
        for bytes_P, scales in zip(
            torch.split(packed_P.flatten().view(torch.uint8), _AT_ONCE // 2),
            torch.split(absmax, _AT_ONCE // block),
            strict=True,
        )
    ]
    weights = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return weights[: prod(shape)].reshape(shape)


@dataclass(frozen=True)
class PartMemory:
    """The bytes of one part of the decoder layers: "attention", "mlp", "experts", or "rest" (routers, norms)."""

    part: str
    parameters: int
    bytes: int
    """As held in memory."""
    expected_bytes: int
    """With every matrix of the part in NF4; as the architecture says for the rest."""


def memory(layers: Iterable[MoELayer], outlines: Iterable[MoELayer]) -> list[PartMemory]:
    """What the parts of quantized layers take; `outlines` are the same layers unquantized (without weights will do)."""
    totals = {part: [0, 0, 0] for part in _MATRIX_DIMENSIONS}
    for layer, outline in zip(layers, outlines, strict=True):
        kinds = {matrix.name: matrix.kind for matrix in outline.matrices()}
        held, plain = _parts(layer, kinds), _parts(outline, kinds)
        for part, total in totals.items():
            total[0] += sum(tensor.numel() for tensor in plain[part])
            total[1] += sum(tensor.nbytes for tensor in held[part])
            total[2] += sum(_expected_bytes(part, tensor) for tensor in plain[part])
    return [PartMemory(part, *total) for part, total in totals.items()]


def check_memory(parts: Iterable[PartMemory]) -> None:
    """ValueError for a part of which some matrices are held in more than 4 bits."""
    for part in parts:
        if part.bytes > part.expected_bytes:
            raise ValueError(
                f"model.load=nf4: {part.part} take {part.bytes / 1e6:,.1f} MB and should take "
                f"{part.expected_bytes / 1e6:,.1f} MB in 4 bits, so some of their matrices were left as they were; "
                "this family's weights are not where quantize_ in stun_exp/checkpoint/nf4.py looks; choose another "
                "model.load"
            )


class _Unpack(nn.Module):
    """What a packed parameter is worth, each time that it is read (a parametrization)."""

    absmax: Tensor

    def __init__(self, absmax: Tensor, shape: torch.Size, dtype: torch.dtype):
        super().__init__()
        self.register_buffer("absmax", absmax)  # a buffer, so that it moves with the module
        self.shape, self.dtype = shape, dtype

    def forward(self, packed_P: Tensor) -> Tensor:
        return unpacked(packed_P, self.absmax, self.shape, self.dtype)


def _pack(weight: Tensor) -> tuple[Tensor, _Unpack]:
    from bitsandbytes.functional import quantize_4bit

    pieces = [
        quantize_4bit(piece, blocksize=BLOCK, quant_type="nf4")
        for piece in torch.split(weight.detach().flatten(), _AT_ONCE)
    ]
    packed_P = torch.cat([packed.flatten() for packed, _ in pieces])
    absmax = torch.cat([state.absmax for _, state in pieces])
    return packed_P, _Unpack(absmax, weight.shape, weight.dtype)


def _weights(layer: MoELayer) -> Iterator[tuple[nn.Module, str]]:
    """Module and name of each parameter that NF4 takes."""
    for _, linear in layer.linears():
        yield linear, "weight"
    if layer.is_moe:
        for name, tensor in layer.experts.named_parameters(recurse=False):
            if tensor.dim() == 3:  # a bias has one dimension less
                yield layer.experts, name


def _unpacking_once(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` with each parameter unpacked once: experts are indexed one by one, and any access unpacks all."""

    @wraps(forward)
    def cached(*args: Any, **kwargs: Any) -> Any:
        with parametrize.cached():
            return forward(*args, **kwargs)

    return cached


def _parts(layer: MoELayer, kinds: Mapping[str, str]) -> dict[str, list[Tensor]]:
    """Part -> everything that a layer holds for it; `kinds` of its linears by name."""
    parts: dict[str, list[Tensor]] = {part: [] for part in _MATRIX_DIMENSIONS}
    for name, linear in layer.linears():
        parts[kinds[name]] += _tensors(linear)
    if layer.is_moe:
        parts["experts"] += _tensors(layer.experts)
    taken = {id(tensor) for tensors in parts.values() for tensor in tensors}
    parts["rest"] = [tensor for tensor in _tensors(layer.module) if id(tensor) not in taken]
    return parts


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _expected_bytes(part: str, tensor: Tensor) -> int:
    # By its dimensions alone, not by `_weights`: what that passes over would be expected to stay as it is.
    if tensor.dim() < _MATRIX_DIMENSIONS[part]:
        return tensor.nbytes
    weights = tensor.numel()
    return ceil(weights / 2) + torch.float32.itemsize * ceil(weights / BLOCK)
