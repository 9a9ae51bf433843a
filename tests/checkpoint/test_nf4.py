"""A layer held in NF4 computes what its weights rounded to NF4 give, experts included, in the memory it should take."""

import re
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import stun_exp.checkpoint.nf4
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.checkpoint.nf4 import PartMemory, as_quantized, check_memory, memory, quantize_
from stun_exp.moe.families import FAMILIES
from stun_exp.moe.layers import MoELayer, layers_of
from stun_exp.moe.observe import Statistic, observe

CPU = torch.device("cpu")
# The 16 values of NF4 (Dettmers et al. 2023, appendix E).
VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def rounded(weight: Tensor) -> Tensor:
    """NF4 by hand: 64 weights in the order of memory share the largest magnitude; each takes the nearest value."""
    out: list[float] = []
    for block in weight.detach().float().flatten().split(64):
        scale = float(block.abs().max())
        out += [min(VALUES, key=lambda v: abs(v - float(w) / (scale or 1))) * scale for w in block]
    return torch.tensor(out).reshape(weight.shape).to(weight.dtype)


def dense(*shapes: tuple[int, int], dtype: torch.dtype = torch.float32) -> MoELayer:
    """A layer of nothing but linears with random weights of the given shapes."""
    generator = torch.Generator().manual_seed(0)
    block = nn.Sequential(*(nn.Linear(columns, rows) for rows, columns in shapes)).to(dtype).requires_grad_(False)
    for linear in block:
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator))
    return MoELayer(nn.ModuleDict({"mlp": block}), 0, FAMILIES["mixtral"])


def weights(layer: MoELayer) -> list[Tensor]:
    return [linear.weight for _, linear in layer.linears()]


def logits(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    target = {"decoder_input_ids": tokens_BT.flip(0)} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        return model(input_ids=tokens_BT, **target).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_that_of_the_paper(dtype: torch.dtype) -> None:
    """Guards rows shorter than a block of 64, which bitsandbytes itself reads wrongly, and odd numbers of weights."""
    layer = dense((8, 16), (7, 3), (5, 90), (1, 1), (16, 48), dtype=dtype)
    expected = [rounded(weight) for weight in weights(layer)]
    with as_quantized(layer):
        inside = [weight.clone() for weight in weights(layer)]
    quantize_(layer)
    for want, held, round_trip in zip(expected, weights(layer), inside, strict=True):
        assert held.dtype == round_trip.dtype == dtype
        assert torch.equal(held, round_trip)
        torch.testing.assert_close(held, want)


def test_zeros_stay_zeros_also_where_a_whole_block_is_zero() -> None:
    """Pruned weights must still be pruned; a block of zeros has the scale 0, and 0 / 0 is no weight."""
    layer = dense((8, 16), (4, 256))
    for weight in weights(layer):
        weight.view(-1)[::2] = 0
        weight.view(-1)[64:128] = 0
    zero = [weight == 0 for weight in weights(layer)]
    quantize_(layer)
    for held, pruned in zip(weights(layer), zero, strict=True):
        assert bool((held[pruned] == 0).all())
        assert not held.isnan().any()


def test_a_tensor_too_large_for_one_call_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes counts in 32 bits; the fused experts of one large layer are more, and would wrap around."""
    whole, pieces = dense((10, 100), (7, 3)), dense((10, 100), (7, 3))
    quantize_(whole)
    monkeypatch.setattr(stun_exp.checkpoint.nf4, "_AT_ONCE", 128)
    quantize_(pieces)
    for one, other in zip(weights(whole), weights(pieces), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_quantized_model_gives_the_logits_of_its_rounded_weights(
    name: str, tiny_model: Callable[[str], Path], tokens_BT: Tensor
) -> None:
    """For every layer and part of it at once: what calibration sees is what evaluation runs."""
    folder = tiny_model(name)
    model, quantized = load_checkpoint(folder, CPU), load_checkpoint(folder, CPU)
    full = logits(model, tokens_BT)
    with ExitStack() as stack:
        for layer in layers_of(model, FAMILIES[name]):
            stack.enter_context(as_quantized(layer))
        calibrated = logits(model, tokens_BT)
    for layer in layers_of(quantized, FAMILIES[name]):
        quantize_(layer)
    # Weights that lie elsewhere in memory may take other kernels, which differ in the last digits.
    torch.testing.assert_close(logits(quantized, tokens_BT), calibrated, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(calibrated, full, rtol=1e-2)
    assert torch.equal(logits(model, tokens_BT), full)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_matrix_is_packed_and_all_else_is_as_it_was(name: str, tiny_model: Callable[[str], Path]) -> None:
    """Guards against fused experts left behind in silence, and against a router that is rounded."""
    checkpoint = Checkpoint(tiny_model(name), None)
    for index in range(checkpoint.num_layers):
        layer, source, marked = (checkpoint.read_layer(index) for _ in range(3))
        for parameter in marked.module.parameters():
            parameter.zero_()
        for matrix in marked.matrices():
            matrix.weight_OC.fill_(1)
        matrices = {key for key, parameter in marked.module.named_parameters() if parameter.all()}
        quantize_(layer)
        held = dict(layer.module.named_parameters())
        packed = {key for key, parameter in held.items() if parameter.dtype == torch.uint8}
        assert {re.sub(r"parametrizations\.(\w+)\.original", r"\1", key) for key in packed} == matrices
        for key, parameter in source.module.named_parameters():
            assert key in matrices or torch.equal(parameter, held[key]), key


def test_the_layers_own_weights_come_back_in_their_own_storage(checkpoint: Checkpoint) -> None:
    """A pruner's views, taken before calibration, must still write into the layer after it."""
    layer, source = checkpoint.read_layer(1), checkpoint.read_layer(1)
    views = [matrix.weight_OC for matrix in layer.matrices()]

    @torch.inference_mode()
    def calibrate() -> None:
        with as_quantized(layer):
            assert not torch.equal(next(layer.matrices()).weight_OC, views[0])
            raise RuntimeError("calibration broke off")

    with pytest.raises(RuntimeError, match="calibration"):
        calibrate()
    for view, matrix, original in zip(views, layer.matrices(), source.matrices(), strict=True):
        assert torch.equal(matrix.weight_OC, original.weight_OC)
        view.zero_()
        assert not matrix.weight_OC.any()


@pytest.mark.parametrize("observed", [True, False])
def test_experts_are_unpacked_once_a_pass(mixtral: Checkpoint, observed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are indexed one by one, and each access would unpack all of them: 12 times instead of 2 here."""
    layer = mixtral.read_layer(1)
    quantize_(layer)
    calls, unpacked = count(), stun_exp.checkpoint.nf4.unpacked
    monkeypatch.setattr(stun_exp.checkpoint.nf4, "unpacked", lambda *args: (next(calls), unpacked(*args))[1])
    layer.experts.config._experts_implementation = "eager"
    hidden_TD = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    with ExitStack() as stack:
        if observed:
            stack.enter_context(observe(layer, [Statistic()]))
        layer.block(hidden_TD[None])
    assert next(calls) == 2
    assert layer.experts.down_proj is not layer.experts.down_proj  # and nothing unpacked is kept


def test_nothing_of_the_wide_weights_is_kept(mixtral: Checkpoint) -> None:
    layer = mixtral.read_layer(1)
    wide = [weakref.ref(layer.experts.down_proj), weakref.ref(layer.module.self_attn.q_proj.weight)]
    quantize_(layer)
    assert [reference() for reference in wide] == [None, None]


def test_all_that_is_packed_moves_with_the_module(mixtral: Checkpoint) -> None:
    """Scales left behind on another device would be read by machine code that does not look where they are."""
    layer = mixtral.read_layer(1)
    quantize_(layer)
    layer.module.to("meta")
    (unpack,) = layer.experts.parametrizations.down_proj
    assert unpack.absmax.is_meta
    assert layer.experts.down_proj.is_meta


def test_memory_of_a_layer_by_hand(tiny_model: Callable[[str], Path]) -> None:
    """Hidden size 16, 4 heads of 4 with 2 for keys and values, 6 experts of width 24, in bfloat16.

    A matrix takes half a byte a weight, and 4 bytes for each 64 weights begun.
    """
    checkpoint = Checkpoint(tiny_model("mixtral"), torch.bfloat16)
    layer = checkpoint.read_layer(1)
    quantize_(layer)
    held = memory([layer], [checkpoint.outline(1)])
    query_output, key_value = 128 + 4 * 4, 64 + 4 * 2
    experts = 6 * 3 * 24 * 16
    rest = 6 * 16 + 2 * 16  # the router, two norms
    assert held == [
        PartMemory("attention", 768, 2 * query_output + 2 * key_value, 2 * query_output + 2 * key_value),
        PartMemory("mlp", 0, 0, 0),
        PartMemory("experts", experts, experts // 2 + experts // 16, experts // 2 + experts // 16),
        PartMemory("rest", rest, 2 * rest, 2 * rest),
    ]
    assert held[2].bytes / (2 * experts) <= 0.30
    check_memory(held)


@pytest.mark.parametrize("name", FAMILIES)
def test_memory_is_as_expected_and_counts_every_tensor_once(name: str, tiny_model: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint(tiny_model(name), None)
    layers = [checkpoint.read_layer(index) for index in range(checkpoint.num_layers)]
    total = sum(p.numel() for layer in layers for p in (*layer.module.parameters(), *layer.module.buffers()))
    for layer in layers:
        quantize_(layer)
    held = memory(layers, [checkpoint.outline(index) for index in range(checkpoint.num_layers)])
    assert [part.bytes for part in held] == [part.expected_bytes for part in held]
    assert sum(part.parameters for part in held) == total
    check_memory(held)


def test_experts_left_in_16_bits_are_refused_by_name(tiny_model: Callable[[str], Path]) -> None:
    """What loading in 4 bits by transformers does: the linears of the layer, and no experts. One layer is enough."""
    checkpoint = Checkpoint(tiny_model("gpt_oss"), torch.bfloat16)
    layers = [checkpoint.read_layer(index) for index in range(checkpoint.num_layers)]
    layers[1].is_moe = False
    for layer in layers:
        quantize_(layer)
    layers[1].is_moe = True
    held = memory(layers, [checkpoint.outline(index) for index in range(checkpoint.num_layers)])
    with pytest.raises(ValueError, match=r"model\.load=nf4: experts take .* MB and should take .* MB"):
        check_memory(held)


def test_attention_left_as_it_is_is_refused_by_name(mixtral: Checkpoint) -> None:
    layer = mixtral.read_layer(0)
    with pytest.raises(ValueError, match="attention take"):
        check_memory(memory([layer], [mixtral.outline(0)]))
