"""The bundled upcycled model: made from a dense one, small, with experts that are in use and still alike."""

import json

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralForCausalLM

from scripts.toy.probe import expert_shares
from stun_exp.moe.redundancy import nearest_cosine, weight_gram
from stun_exp.toy import MODELS

FOLDER = MODELS["toy_upcycled"]


def weight_cosines(folder: str) -> list[float]:
    """By layer, the cosine between an expert's weights and those most like them."""
    model = AutoModelForCausalLM.from_pretrained(MODELS[folder], dtype=torch.float32)
    experts = [layer.mlp.experts for layer in model.model.layers]
    return [nearest_cosine(weight_gram(one.detach().flatten(1) for one in e.parameters())) for e in experts]


def test_one_small_file_in_bf16() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 16 * 2**20
    with safe_open(FOLDER / "model.safetensors", framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118
    assert json.loads((FOLDER / "config.json").read_text())["output_router_logits"] is False


def test_loads_in_stock_transformers_and_no_expert_is_idle() -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    assert type(model) is MixtralForCausalLM
    shares_LE = expert_shares(model, AutoTokenizer.from_pretrained(FOLDER), num_documents=300)
    assert shares_LE.shape == (4, 16)
    assert shares_LE.min() >= 0.1


def test_experts_that_began_as_copies_are_still_more_alike_than_those_trained_apart() -> None:
    assert min(weight_cosines("toy_upcycled")) > 0.4 > 0.1 > max(weight_cosines("toy_moe"))
