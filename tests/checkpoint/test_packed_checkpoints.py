"""A checkpoint that is there in 8 or 4 bits alone: read, pruned and written in 16 or 32, as any other."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from stun_exp.checkpoint.checkpoint import Checkpoint

BLOCK = 8


def fp8(weight_OC: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The weight in blocks of 8 x 8 with a scale each, by suffix; and what it is worth."""
    rows, columns = (-(-size // BLOCK) for size in weight_OC.shape)
    scale = torch.rand(rows, columns) / 100 + 0.001
    spread_OC = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: len(weight_OC), : weight_OC.shape[1]]
    packed_OC = (weight_OC / spread_OC).to(torch.float8_e4m3fn)
    return {"": packed_OC, "_scale_inv": scale}, packed_OC.float() * spread_OC


def nf4(weight_OC: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    packed, state = quantize_4bit(weight_OC, quant_type="nf4", blocksize=64)
    suffixes = {f".{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    code_P = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten()[: weight_OC.numel()].long()
    scale_P = state.absmax.repeat_interleave(64)[: weight_OC.numel()]
    return {"": packed, **suffixes}, (state.code[code_P] * scale_P).view_as(weight_OC)


PACKINGS = {
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
}


@pytest.fixture(params=PACKINGS)
def packed(
    request: pytest.FixtureRequest, tiny_model: Callable[[str], Path], tmp_path: Path
) -> tuple[Path, dict[str, Tensor]]:
    """A tiny DeepSeek-V3 whose linears and experts are packed, and what every tensor of it is worth."""
    pack, quantization = PACKINGS[request.param]
    folder = Path(copytree(tiny_model("deepseek_v3"), tmp_path / "packed"))
    stored: dict[str, Tensor] = {}
    worth = load_file(folder / "model.safetensors")
    for key, tensor in list(worth.items()):
        linear = key.endswith("_proj.weight") and ".layers." in key
        parts, worth[key] = pack(tensor) if linear else ({"": tensor}, tensor)
        stored |= {key + suffix: part for suffix, part in parts.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return folder, worth


def test_a_layer_is_read_as_what_it_is_worth(packed: tuple[Path, dict[str, Tensor]]) -> None:
    folder, worth = packed
    checkpoint = Checkpoint(folder, None)
    experts = checkpoint.read_layer(2).experts
    for expert in range(6):
        gate, up, down = (
            worth[f"model.layers.2.mlp.experts.{expert}.{name}_proj.weight"] for name in ("gate", "up", "down")
        )
        torch.testing.assert_close(experts.gate_up_proj[expert], torch.cat([gate, up]))
        torch.testing.assert_close(experts.down_proj[expert], down)


def test_it_is_pruned_and_written_unpacked(
    packed: tuple[Path, dict[str, Tensor]], runner: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Stock transformers loads it, with no packing in its config and none in its tensors."""
    folder, worth = packed
    report = runner(f"model.path={folder}", "expert_pruner=none", "sparsity=0.5", "allocation=uniform", "save=true")
    assert report["sparsity"]["achieved"] == pytest.approx(0.5, abs=0.001)
    assert "unpacked on reading, and written in torch.float32" in " ".join(report["warnings"])
    written = tmp_path / "run" / "checkpoint"
    assert "quantization_config" not in json.loads((written / "config.json").read_text())
    tensors = {key: t for file in written.glob("*.safetensors") for key, t in load_file(file).items()}
    assert tensors.keys() == worth.keys()
    for key, tensor in tensors.items():
        kept = tensor != 0
        torch.testing.assert_close(tensor[kept], worth[key][kept])
    assert AutoModelForCausalLM.from_pretrained(written).dtype == torch.float32
