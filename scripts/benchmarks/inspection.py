"""Benchmarks of `stun inspect` on an index of a million entries."""

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.benchmarks.timing import seconds, timed

NUM_LAYERS, NUM_EXPERTS = 64, 5208
ATTENTION = [f"self_attn.{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
NORMS = ["input_layernorm.weight", "post_attention_layernorm.weight"]


def inspect_million_seconds() -> dict[str, Any]:
    """Reading the index of a model of 1,000,515 tensors, all checks and the printing, once torch is imported."""
    import stun_exp

    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder))

        def ours() -> None:
            assert "5,208 a layer" in str(stun_exp.inspect(folder))

        ours()  # transformers imports a family's code when it first meets it
        value = statistics.median(timed(ours) for _ in range(5))
    return {"value": value, "unit": "s", "ours": value, "reference": None}


def inspect_command_seconds() -> dict[str, Any]:
    """`stun inspect` of the same model, from the prompt to the last line, with the imports."""
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder))
        return seconds([str(Path(sys.executable).parent / "stun"), "inspect", *_local(folder)], expected=0)


def _local(folder: str) -> list[str]:
    return ["model=local", f"model.path={folder}"]


def _write(folder: Path) -> None:
    """A Qwen3-MoE of 64 layers with 5,208 experts each: config.json and the index, no weights."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "dtype": "bfloat16",
        "hidden_size": 2048,
        "head_dim": 128,
        "moe_intermediate_size": 768,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "num_hidden_layers": NUM_LAYERS,
        "num_experts": NUM_EXPERTS,
        "num_experts_per_tok": 8,
        "vocab_size": 151936,
    }
    experts = [f"mlp.experts.{e}.{name}_proj.weight" for e in range(NUM_EXPERTS) for name in ("gate", "up", "down")]
    layer = [*ATTENTION, *NORMS, "mlp.gate.weight", *experts]
    files = {
        f"model.layers.{index}.{name}": f"model-{index + 1:05d}-of-{NUM_LAYERS:05d}.safetensors"
        for index in range(NUM_LAYERS)
        for name in layer
    }
    files |= dict.fromkeys(("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"), "model-00001")
    assert len(files) == 1_000_515
    index = {"metadata": {"total_size": 3 * 10**12}, "weight_map": files}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
