"""The bundled Arctic is small, of the published form, has learnt its world, and uses all its experts."""

import json
import math
from itertools import islice

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from scripts.toy.probe import expert_shares
from stun_exp.models import register
from stun_exp.toy import MODELS
from stun_exp.toy.text import held_out_documents

FOLDER = MODELS["toy_arctic"]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    register()
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@torch.inference_mode()
def byte_perplexity(model: PreTrainedModel) -> float:
    """exp of the mean loss per byte of held-out text, each document on its own."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    nats = count = 0.0
    for document in islice(held_out_documents(0), 50):
        ids_BS = torch.tensor([[tokenizer.eos_token_id, *tokenizer(document)["input_ids"]]])
        log_BSV = model(ids_BS).logits[:, :-1].log_softmax(-1)
        nats -= log_BSV.gather(-1, ids_BS[:, 1:, None]).sum().item()
        count += len(document.encode())
    return math.exp(nats / count)


def test_one_small_file_in_bf16_under_the_published_names() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 5_000_000
    assert json.loads((FOLDER / "config.json").read_text())["model_type"] == "arctic"
    with safe_open(FOLDER / "model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
        assert {weights.get_slice(name).get_dtype() for name in names} == {"BF16"}
    published = {
        "model.layers.0.block_sparse_moe.mlp.w1.weight",
        "model.layers.1.block_sparse_moe.gate.weight",
        "model.layers.3.block_sparse_moe.experts.15.w3.weight",
        "model.layers.3.residual_mlp.w2.weight",
        "model.layers.3.residual_layernorm.weight",
    }
    assert published <= names


def test_it_has_learnt_its_world(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    untrained = AutoModelForCausalLM.from_config(model.config).eval()
    assert byte_perplexity(model) < 1.6 < 4 < byte_perplexity(untrained)


def test_no_expert_is_idle(model: PreTrainedModel) -> None:
    shares_LE = expert_shares(model, AutoTokenizer.from_pretrained(FOLDER), num_documents=300)
    routed_LE = shares_LE[shares_LE.sum(1) > 0]  # a layer without experts leaves a row of zeros
    assert routed_LE.shape == (2, 16)
    assert routed_LE.min() >= 0.1
