"""A packed weight is what its format's definition says, worked out here one number at a time."""

from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from torch import Tensor, nn

from stun_exp.checkpoint.dequantize import Packing, packing_of

FOLDER = Path("some/model")
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [2, 3]}
BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}


def packing(quantization: dict[str, Any] | None) -> Packing:
    return packing_of({"quantization_config": quantization} if quantization else {}, FOLDER)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_without_quantization_every_tensor_is_its_own_and_comes_in_the_dtype_asked_for() -> None:
    plain = packing(None)
    assert plain.names(["a.weight", "b_blocks", "c.absmax"]) == {
        key: (key,) for key in ("a.weight", "b_blocks", "c.absmax")
    }
    assert plain.unpack("a", {"a": random(3)}, torch.bfloat16).dtype == torch.bfloat16
    counts = torch.tensor([1, 2], dtype=torch.uint8)
    assert torch.equal(plain.unpack("n", {"n": counts}, torch.bfloat16), counts)
    assert plain.unpack("n", {"n": counts}, torch.bfloat16).dtype == torch.uint8


@pytest.mark.parametrize(
    ("quantization", "suffixes", "name"),
    [
        (FP8, ["", "_scale_inv"], "q.weight"),
        (BITSANDBYTES, ["", ".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4"], "q.weight"),
        (MXFP4, ["_blocks", "_scales"], "experts.gate_up_proj"),
    ],
)
def test_packed_and_plain_tensors_stand_side_by_side(
    quantization: dict[str, Any], suffixes: list[str], name: str
) -> None:
    """Norms, biases and modules that were not converted keep their one key; `q.weights` only looks like a companion."""
    plain = ["norm.weight", "q.bias", "k.weight", f"{name}_bias"]
    stored = [name + suffix for suffix in suffixes]
    names = packing(quantization).names([*plain, *reversed(stored)])
    assert {key: set(value) for key, value in names.items()} == {key: {key} for key in plain} | {name: set(stored)}


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (1, 2), (3, 5, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_is_each_block_times_its_scale(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Blocks of 2 x 3, cut off at the edges; fused experts have a grid of scales each."""
    *experts, rows, columns = shape
    weight = random(*shape).to(torch.float8_e4m3fn)
    scale = random(*experts, ceil(rows / 2), ceil(columns / 3)).abs()
    expected = torch.empty(shape)
    for *expert, row, column in product(*map(range, shape)):
        place = (*expert, row, column)
        expected[place] = float(weight.float()[place]) * float(scale[(*expert, row // 2, column // 3)])
    got = packing(FP8).unpack("x.weight", {"x.weight": weight, "x.weight_scale_inv": scale}, dtype)
    assert got.dtype == dtype
    assert torch.equal(got, expected.to(dtype))


def bitsandbytes_by_hand(stored: dict[str, Tensor], state: Any) -> Tensor:
    """A byte at a time, the left half first; every 64 weights have a scale, which may be packed in 8 bits itself."""
    scales = stored[".absmax"].float().tolist()
    if ".nested_absmax" in stored:
        codes, outer = stored[".nested_quant_map"].tolist(), stored[".nested_absmax"].tolist()
        scales = [codes[int(s)] * outer[i // 256] + float(state.offset) for i, s in enumerate(scales)]
    code = stored[".quant_map"].tolist()
    indices = [half for byte in stored[""].flatten().tolist() for half in (byte >> 4, byte & 15)]
    weights = [code[index] * scales[i // 64] for i, index in enumerate(indices)]
    return torch.tensor(weights[: state.shape.numel()]).reshape(state.shape)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(8, 16), (6, 10), (7, 3), (40, 64), (3, 8, 48)])
def test_bitsandbytes_is_code_times_scale(kind: str, nested: bool, shape: tuple[int, ...]) -> None:
    """Rows shorter than a block of 64, as in (8, 16), are what bitsandbytes' own CPU code gets wrong."""
    packed, state = quantize_4bit(random(*shape), quant_type=kind, compress_statistics=nested)
    stored = {"": packed} | {f".{suffix}": tensor for suffix, tensor in state.as_dict(packed=True).items()}
    on_disk = {f"x.weight{suffix}": tensor for suffix, tensor in stored.items()}
    reader = packing(BITSANDBYTES)
    assert reader.names(on_disk).keys() == {"x.weight"}
    got = reader.unpack("x.weight", on_disk, torch.float32)
    torch.testing.assert_close(got, bitsandbytes_by_hand(stored, state), rtol=1e-6, atol=1e-6)


def test_fused_experts_are_read_under_the_keys_that_bitsandbytes_gives_them() -> None:
    """Their name has no ".weight", and they have three dimensions."""
    experts = nn.Module()
    experts.gate_up_proj = nn.Parameter(random(3, 8, 16), requires_grad=False)
    experts.bias = nn.Parameter(random(3, 8), requires_grad=False)
    replace_parameter_4bit(experts, "gate_up_proj", quant_type="nf4", compress_statistics=True)
    on_disk = experts.state_dict()
    reader = packing(BITSANDBYTES)
    names = reader.names(on_disk)
    assert names.keys() == {"gate_up_proj", "bias"}
    got = reader.unpack("gate_up_proj", {key: on_disk[key] for key in names["gate_up_proj"]}, torch.bfloat16)
    assert (got.shape, got.dtype) == ((3, 8, 16), torch.bfloat16)
    # Two codes lie at most 0.304 of a scale apart, so no weight moves by more than half of that.
    assert float((got - random(3, 8, 16)).abs().max()) < 0.16 * float(random(3, 8, 16).abs().max())


def e2m1(bits: int) -> float:
    """A 4-bit float: sign, two bits of exponent with bias 1, one of mantissa; exponent 0 is subnormal."""
    sign, exponent, mantissa = bits >> 3, bits >> 1 & 3, bits & 1
    return (-1) ** sign * (mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mxfp4_is_a_4_bit_float_times_a_power_of_two(dtype: torch.dtype) -> None:
    """OCP Microscaling Formats 1.0: 32 elements share the scale 2 ** (byte - 127), and the low half of a byte is first.

    gpt-oss stores its experts rows by columns and computes with columns by rows.
    """
    experts, rows, groups = 2, 3, 2
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (experts, rows, groups, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(100, 150, (experts, rows, groups), dtype=torch.uint8, generator=generator)
    expected_ECO = torch.empty(experts, groups * 32, rows)
    for expert, row, column in product(range(experts), range(rows), range(groups * 32)):
        group, place = divmod(column, 32)
        byte = int(blocks[expert, row, group, place // 2])
        value = e2m1(byte >> 4 if place % 2 else byte & 15)
        expected_ECO[expert, column, row] = value * 2.0 ** (int(scales[expert, row, group]) - 127)
    stored = {"e.down_proj_blocks": blocks, "e.down_proj_scales": scales}
    got = packing(MXFP4).unpack("e.down_proj", stored, dtype)
    assert got.dtype == dtype
    assert torch.equal(got.float(), expected_ECO)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "fp8", "activation_scheme": "static"},
        {"quant_method": "fp8", "weight_block_size": None},
        {"quant_method": "fp8", "weight_block_size": [0, 128]},
        {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True},
        {"bits": 4},
    ],
)
def test_an_unknown_quantization_is_refused_by_its_config(quantization: dict[str, Any]) -> None:
    known = "fp8 with weight_block_size, bitsandbytes with load_in_4bit, mxfp4"
    method = quantization.get("quant_method", "quantization_config")
    with pytest.raises(ValueError, match=rf"some/model/config\.json: .*{method}.*known: {known}; give the .* 16 bits"):
        packing(quantization)


@pytest.mark.parametrize(
    ("quantization", "keys", "missing"),
    [
        (FP8, ["q.weight_scale_inv", "k.weight"], "q.weight"),
        (MXFP4, ["gate_up_proj_blocks"], "gate_up_proj_scales"),
        (MXFP4, ["gate_up_proj_scales", "gate_up_proj_bias"], "gate_up_proj_blocks"),
        (BITSANDBYTES, ["q.weight", "q.weight.absmax", "q.weight.quant_map"], "q.weight.quant_state.bitsandbytes__nf4"),
        (
            BITSANDBYTES,
            [f"q.weight{s}" for s in ("", ".absmax", ".quant_map", ".nested_absmax", ".quant_state.bitsandbytes__fp4")],
            "q.weight.nested_quant_map",
        ),
    ],
)
def test_a_weight_that_is_there_in_part_is_refused_before_it_is_read(
    quantization: dict[str, Any], keys: list[str], missing: str
) -> None:
    with pytest.raises(ValueError, match=rf"some/model/config\.json .* missing {missing}[,;].*download it again"):
        packing(quantization).names(keys)


@pytest.mark.parametrize("quantization", [None, FP8])
def test_fp8_without_scales_is_not_taken_for_weights(quantization: dict[str, Any] | None) -> None:
    """Cast as they are, they would be a model, and a wrong one."""
    weight = random(4, 6).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"some/model, q\.weight: .*float8_e4m3fn.*scales are missing"):
        packing(quantization).unpack("q.weight", {"q.weight": weight}, torch.float32)


def test_packed_bytes_without_scales_are_not_taken_for_weights() -> None:
    with pytest.raises(ValueError, match=r"q\.weight: .*uint8.*scales are missing"):
        packing(BITSANDBYTES).unpack("q.weight", {"q.weight": torch.ones(8, 1, dtype=torch.uint8)}, torch.float32)


def test_parts_that_do_not_fit_together_are_refused() -> None:
    weight = random(4, 6).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"q\.weight: its scales are torch.float32 of shape \(2, 3\).*\(2, 2\)"):
        packing(FP8).unpack("q.weight", {"q.weight": weight, "q.weight_scale_inv": random(2, 3)}, torch.float32)
    blocks, scales = torch.zeros(2, 3, 2, 16, dtype=torch.uint8), torch.zeros(2, 3, 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"e: blocks .*\(2, 3, 2, 16\) and scales .*\(2, 3, 1\)"):
        packing(MXFP4).unpack("e", {"e_blocks": blocks, "e_scales": scales}, torch.float32)
    packed, state = quantize_4bit(random(16, 16), quant_type="nf4")
    stored = {"q": packed[:-1]} | {f"q.{suffix}": tensor for suffix, tensor in state.as_dict(packed=True).items()}
    with pytest.raises(ValueError, match=r"q: 127 bytes and 4 scales do not make \(16, 16\)"):
        packing(BITSANDBYTES).unpack("q", stored, torch.float32)
