"""The shipped model is stock transformers, small, and uses all its experts."""

import json

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralForCausalLM

from scripts.toy.probe import expert_shares
from stun_exp.toy import WEIGHTS


def test_one_small_file_in_bf16_with_per_expert_keys() -> None:
    files = sorted(path.name for path in WEIGHTS.iterdir())
    assert [name for name in files if name.endswith(".safetensors")] == ["model.safetensors"]
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 16 * 2**20
    with safe_open(WEIGHTS / "model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
        assert {weights.get_slice(name).get_dtype() for name in names} == {"BF16"}
    assert "model.layers.3.block_sparse_moe.experts.31.w1.weight" in names


def test_config_leaves_router_logits_off() -> None:
    # A training setting that checkpoints carry: it costs memory and breaks on layers of unequal size.
    assert json.loads((WEIGHTS / "config.json").read_text())["output_router_logits"] is False


def test_loads_in_stock_transformers_and_no_expert_is_idle() -> None:
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)
    assert type(model) is MixtralForCausalLM
    shares_LE = expert_shares(model, AutoTokenizer.from_pretrained(WEIGHTS), num_documents=300)
    assert shares_LE.min() >= 0.1
