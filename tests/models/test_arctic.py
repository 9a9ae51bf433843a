"""Arctic gives the published architecture's logits, and reads and writes the published names.

The reference below is written from the steps of the published `modeling_arctic.py`, in loops, on tensors under the
published per-expert names; it shares no code with the model.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from stun_exp.models import register

Weights = dict[str, Tensor]
VOCAB = 32
# As published for snowflake-arctic-base, apart from the sizes.
CONFIG: dict[str, Any] = {
    "architectures": ["ArcticForCausalLM"],
    "attention_dropout": 0,
    "auto_map": {
        "AutoConfig": "configuration_arctic.ArcticConfig",
        "AutoModel": "modeling_arctic.ArcticModel",
        "AutoModelForCausalLM": "modeling_arctic.ArcticForCausalLM",
    },
    "bos_token_id": 30,
    "enable_expert_tensor_parallelism": False,
    "eos_token_id": 31,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 12,
    "max_position_embeddings": 64,
    "model_type": "arctic",
    "moe_eval_capacity_factor": 1,
    "moe_layer_frequency": 1,
    "moe_min_capacity": 0,
    "moe_token_dropping": True,
    "moe_train_capacity_factor": 1,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "num_local_experts": 5,
    "parallel_attn_mlp_res": True,
    "quantization": None,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
    "use_residual": True,
    "vocab_size": VOCAB,
}
VARIANTS = {
    "published": {},
    "no residual": {"parallel_attn_mlp_res": False},
    "experts in layer 1 of 3": {"moe_layer_frequency": 2},
    "experts in layer 2 of 3, top-1": {"moe_layer_frequency": 3, "num_experts_per_tok": 1},
    "top-1, no residual": {"num_experts_per_tok": 1, "parallel_attn_mlp_res": False},
    "top-3": {"num_experts_per_tok": 3},
    "a key and value per head": {"num_key_value_heads": 4},
    "another rope": {"rope_theta": 100},
    "a window of 4": {"sliding_window": 4},
}


def published_weights(config: dict[str, Any]) -> Weights:
    """Random tensors under the published names. Norms are far from 1 and from one another, so a swap would show."""
    generator = torch.Generator().manual_seed(0)
    hidden, width = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    weights: Weights = {}

    def draw(name: str, *shape: int) -> None:
        noise = torch.randn(shape, generator=generator)
        weights[f"{name}.weight"] = 1 + 0.5 * noise if len(shape) == 1 else noise / math.sqrt(shape[1]) * 1.5

    def draw_mlp(name: str, inner: int) -> None:
        draw(f"{name}.w1", inner, hidden)
        draw(f"{name}.w2", hidden, inner)
        draw(f"{name}.w3", inner, hidden)

    draw("model.embed_tokens", VOCAB, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, rows in {"q_proj": hidden, "k_proj": kv, "v_proj": kv, "o_proj": hidden}.items():
            draw(f"{prefix}.self_attn.{name}", rows, hidden)
        draw(f"{prefix}.input_layernorm", hidden)
        draw(f"{prefix}.post_attention_layernorm", hidden)
        if (layer + 1) % config["moe_layer_frequency"] == 0:
            draw(f"{prefix}.block_sparse_moe.gate", config["num_local_experts"], hidden)
            for expert in range(config["num_local_experts"]):
                draw_mlp(f"{prefix}.block_sparse_moe.experts.{expert}", width)
            if config["parallel_attn_mlp_res"]:
                draw(f"{prefix}.residual_layernorm", hidden)
                draw_mlp(f"{prefix}.residual_mlp", hidden)
        else:
            draw_mlp(f"{prefix}.block_sparse_moe.mlp", width)
    draw("model.norm", hidden)
    draw("lm_head", VOCAB, hidden)
    return weights


def reference_logits(config: dict[str, Any], weights: Weights, ids_S: Tensor) -> Tensor:
    """What the published code computes for one sequence (S x V), a token at a time, in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def norm(name: str, x_SD: Tensor) -> Tensor:
        return x_SD / (x_SD.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * w[f"{name}.weight"]

    def mlp(name: str, x: Tensor) -> Tensor:
        gate = w[f"{name}.w1.weight"] @ x
        return w[f"{name}.w2.weight"] @ (gate / (1 + (-gate).exp()) * (w[f"{name}.w3.weight"] @ x))

    def rotate(x: Tensor, position: int) -> Tensor:
        half = len(x) // 2
        out = torch.empty_like(x)
        for i in range(half):
            angle = position / config["rope_theta"] ** (2 * i / len(x))
            out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
            out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
        return out

    def attention(name: str, x_SD: Tensor) -> Tensor:
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        size = x_SD.shape[1] // heads
        window = config["sliding_window"] or len(x_SD)
        out_SD = torch.zeros_like(x_SD)
        for head in range(heads):
            mine = slice(head * size, (head + 1) * size)
            group = head // (heads // kv_heads)
            shared = slice(group * size, (group + 1) * size)
            keys = [rotate(w[f"{name}.k_proj.weight"][shared] @ x, p) for p, x in enumerate(x_SD)]
            values = [w[f"{name}.v_proj.weight"][shared] @ x for x in x_SD]
            for here, x in enumerate(x_SD):
                query = rotate(w[f"{name}.q_proj.weight"][mine] @ x, here)
                seen = range(max(0, here - window + 1), here + 1)
                share = torch.stack([query @ keys[p] / math.sqrt(size) for p in seen]).softmax(0)
                out_SD[here, mine] = sum(s * values[p] for s, p in zip(share, seen, strict=True))
        return torch.stack([w[f"{name}.o_proj.weight"] @ x for x in out_SD])

    def experts(name: str, x: Tensor) -> Tensor:
        probability_E = (w[f"{name}.gate.weight"] @ x).softmax(0)
        chosen = sorted(range(len(probability_E)), key=lambda e: -probability_E[e])[: config["num_experts_per_tok"]]
        # A single expert keeps its probability as its gate: no published step divides it by itself.
        total = sum(probability_E[e] for e in chosen) if len(chosen) > 1 else 1
        return sum(probability_E[e] / total * mlp(f"{name}.experts.{e}", x) for e in chosen)

    x_SD = w["model.embed_tokens.weight"][ids_S]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        before_SD = x_SD
        after_SD = before_SD + attention(f"{name}.self_attn", norm(f"{name}.input_layernorm", before_SD))
        block = f"{name}.block_sparse_moe"
        if (layer + 1) % config["moe_layer_frequency"] != 0:
            inner_SD = norm(f"{name}.post_attention_layernorm", after_SD)
            x_SD = after_SD + torch.stack([mlp(f"{block}.mlp", x) for x in inner_SD])
        elif config["parallel_attn_mlp_res"]:
            beside_SD = norm(f"{name}.residual_layernorm", after_SD)
            inner_SD = norm(f"{name}.post_attention_layernorm", before_SD)
            x_SD = after_SD + torch.stack([mlp(f"{name}.residual_mlp", x) for x in beside_SD])
            x_SD = x_SD + torch.stack([experts(block, x) for x in inner_SD])
        else:
            inner_SD = norm(f"{name}.post_attention_layernorm", after_SD)
            x_SD = after_SD + torch.stack([experts(block, x) for x in inner_SD])
    return norm("model.norm", x_SD) @ w["lm_head.weight"].T


Publish = Callable[[str], tuple[dict[str, Any], Weights, Path]]


@pytest.fixture(scope="module")
def publish(tmp_path_factory: pytest.TempPathFactory) -> Publish:
    """variant -> config, weights and a folder of them as Snowflake publishes them, without any Python file."""
    register()
    made: dict[str, tuple[dict[str, Any], Weights, Path]] = {}

    def make(variant: str) -> tuple[dict[str, Any], Weights, Path]:
        if variant not in made:
            config = CONFIG | VARIANTS[variant]
            weights = published_weights(config)
            folder = tmp_path_factory.mktemp("arctic")
            (folder / "config.json").write_text(json.dumps(config))
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            made[variant] = config, weights, folder
        return made[variant]

    return make


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()


@pytest.fixture
def ids_BS() -> Tensor:
    return torch.randint(0, VOCAB - 2, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_logits_are_those_of_the_published_steps(publish: Publish, variant: str, ids_BS: Tensor) -> None:
    """Guards each norm's input, the experts' reading of what was there before attention, gates, rope and heads."""
    config, weights, folder = publish(variant)
    expected = torch.stack([reference_logits(config, weights, ids_S) for ids_S in ids_BS])
    assert expected.std() > 0.5  # else everything would be close to everything
    torch.testing.assert_close(load(folder)(ids_BS).logits, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_published_folder_loads_whole_and_is_saved_back(publish: Publish, variant: str, tmp_path: Path) -> None:
    _, weights, folder = publish(variant)
    model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, output_loading_info=True)
    assert not any(info.values()), info
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(saved[name], tensor), name


def test_settings_that_only_deepspeed_reads_are_carried(publish: Publish, tmp_path: Path) -> None:
    config, _, folder = publish("published")
    AutoConfig.from_pretrained(folder).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    # Transformers renames these two when it saves any model.
    gone = {"rope_theta": saved.pop("rope_parameters")["rope_theta"], "torch_dtype": saved.pop("dtype")}
    assert {name: (saved | gone).get(name) for name in config} == config


@pytest.mark.parametrize("variant", ["published", "a window of 4"])
@torch.inference_mode()
def test_generation_with_a_cache_is_generation_without(publish: Publish, variant: str, ids_BS: Tensor) -> None:
    config, weights, folder = publish(variant)
    model = load(folder)
    with_cache, without = (
        model.generate(ids_BS, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=cache, pad_token_id=0)
        for cache in (True, False)
    )
    assert torch.equal(with_cache, without)
    # And the last token is what the reference would have said.
    said = reference_logits(config, weights, with_cache[0, :-1])[-1]
    said[config["eos_token_id"]] = -torch.inf  # min_new_tokens rules it out
    assert with_cache[0, -1] == said.argmax()


@torch.inference_mode()
def test_padding_on_the_left_changes_nothing(publish: Publish, ids_BS: Tensor) -> None:
    """Evaluation pads a batch; a pad that was attended to would change a score in silence."""
    model = load(publish("published")[2])
    short = ids_BS[:1, :6]
    padded = torch.cat([ids_BS[1:, :3], short], dim=1)
    mask = (torch.arange(9) >= 3).long()[None]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    alone = model(short).logits
    torch.testing.assert_close(model(padded, attention_mask=mask, position_ids=positions).logits[:, 3:], alone)


def test_losses_by_hand(publish: Publish, ids_BS: Tensor) -> None:
    """The published balance loss is a sum over the layers with experts, of each layer's own; it is not pooled."""
    config, _, folder = publish("experts in layer 1 of 3")
    out = load(folder)(ids_BS, labels=ids_BS, output_router_logits=True)
    (logits_TE,) = out.router_logits
    probability_TE = logits_TE.double().softmax(-1)
    chosen_TK = probability_TE.topk(2).indices
    load_E = torch.tensor([(chosen_TK == expert).sum() for expert in range(5)]) / len(logits_TE)
    auxiliary = 5 * (load_E * probability_TE.mean(0)).sum()
    torch.testing.assert_close(out.aux_loss.double(), auxiliary, rtol=1e-5, atol=0)
    log_BSV = out.logits.double().log_softmax(-1)[:, :-1]
    language = -log_BSV.gather(-1, ids_BS[:, 1:, None]).mean()
    expected = language + config["router_aux_loss_coef"] * auxiliary
    torch.testing.assert_close(out.loss.double(), expected, rtol=1e-5, atol=0)
    assert load(folder)(ids_BS).aux_loss is None


def test_parameters_of_the_real_model_by_hand() -> None:
    """7168 wide, 35 layers of 128 experts 4864 wide, 56 heads over 8 of 128: the 480B that it is named for."""
    register()
    real = {
        "hidden_size": 7168,
        "intermediate_size": 4864,
        "num_hidden_layers": 35,
        "num_attention_heads": 56,
        "num_key_value_heads": 8,
        "num_local_experts": 128,
        "vocab_size": 32_000,
    }
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(CONFIG | real)))
    experts = 128 * 3 * 7168 * 4864  # 13,388,218,368
    router = 128 * 7168  # 917,504
    residual = 3 * 7168 * 7168  # 154,140,672
    attention = 2 * 7168 * 7168 + 2 * 7168 * 8 * 128  # 117,440,512
    layer = experts + router + residual + attention + 3 * 7168  # 13,660,738,560
    by_hand = 35 * layer + 2 * 32_000 * 7168 + 7168
    assert by_hand == 478_584_608_768
    assert sum(parameter.numel() for parameter in model.parameters()) == by_hand
    assert by_hand == pytest.approx(480e9, rel=0.01)


def test_the_blocks_lie_where_pruning_looks_for_them(publish: Publish) -> None:
    """A router with `top_k`, `weight` and its own word on renormalizing; fused experts; neither in a dense layer."""
    dense, sparse, _ = load(publish("experts in layer 1 of 3")[2]).model.layers
    assert not hasattr(dense.block_sparse_moe, "experts")
    assert sparse.block_sparse_moe.experts.gate_up_proj.shape == (5, 2 * 12, 16)
    assert sparse.block_sparse_moe.experts.down_proj.shape == (5, 16, 12)
    router = sparse.block_sparse_moe.gate
    assert (router.weight.shape, router.top_k, router.norm_topk_prob) == ((5, 16), 2, True)
    top_1 = load(publish("top-1, no residual")[2]).model.layers[0].block_sparse_moe.gate
    assert top_1.norm_topk_prob is False
