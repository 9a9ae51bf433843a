"""What is exported: the bundled models, and a small random model of each family, with the bundled tokenizer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import stun_exp
from stun_exp.config.conf import CONF
from stun_exp.toy import WEIGHTS

EQUAL: dict[str, Any] = {"expert_pruner": "reap", "expert_pruner.ratio": 0.25, "export": "hf"}
PADDED: dict[str, Any] = {"expert_pruner": "stun", "expert_pruner.ratio": 0.25, "export": "hf_padded"}
QUICK: dict[str, Any] = {
    **{"unstructured_pruner": "wanda", "allocation": "uniform", "measure_damage": False, "eval": "none"},
    **{"calibration": "toy", "calibration.num_sequences": 32, "calibration.sequence_length": 128},
    "cache": "none",
}
SPARSITY = 0.4
STD = 0.07
"""Of what is added to random weights: as they are drawn, all experts look alike."""

_SHARED: dict[str, Any] = {
    **{"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"num_experts_per_tok": 2, "max_position_embeddings": 1024, "tie_word_embeddings": False},
}
_WIDTHS = {"intermediate_size": 128, "moe_intermediate_size": 64}
_GROUPS = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}
_LATENT = {"kv_lora_rank": 64, "q_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 64}
_HEADS = {"num_key_value_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 64, "num_local_experts": 8},
    "qwen2_moe": {**_WIDTHS, "shared_expert_intermediate_size": 64, "num_experts": 8, "mlp_only_layers": [0]},
    "qwen3_moe": {**_WIDTHS, "num_experts": 8, "head_dim": 32},
    "olmoe": {"intermediate_size": 64, "num_experts": 8},
    "granitemoe": {"intermediate_size": 64, "num_local_experts": 8},
    "ernie4_5_moe": {
        **_WIDTHS,
        **{"moe_num_experts": 8, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1},
    },
    "glm4_moe": {**_WIDTHS, **_GROUPS, "head_dim": 32, "norm_topk_prob": True},
    "deepseek_v2": {
        **{**_WIDTHS, **_GROUPS, **_HEADS, **_LATENT},
        **{"topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5},
    },
    "deepseek_v3": {**_WIDTHS, **_GROUPS, **_HEADS, **_LATENT, "norm_topk_prob": True},
    "dots1": {**_WIDTHS, **_GROUPS, "norm_topk_prob": True},
    "gpt_oss": {"intermediate_size": 64, "num_local_experts": 8, "head_dim": 32, "sliding_window": 128},
    "phimoe": {"intermediate_size": 64, "num_local_experts": 8},
    "qwen3_next": {
        **{**_WIDTHS, "num_experts": 8, "shared_expert_intermediate_size": 64, "head_dim": 32},
        **{"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
        **{"linear_num_value_heads": 4, "linear_num_key_heads": 2},
        **{"linear_key_head_dim": 32, "linear_value_head_dim": 32},
    },
}
TOYS = ("toy_moe", "toy_upcycled")
BARRED = ("deepseek_v3", "glm4_moe", "gpt_oss")
"""Families whose routers have a bias or a score correction, so that layers can be filled."""


@dataclass(frozen=True)
class Exported:
    """A pruned checkpoint."""

    model: str
    export: str
    folder: Path


def exported(work: Path, chosen: list[str]) -> Iterator[Exported]:
    """The chosen models (all, if none is), each pruned and exported once; padded too where that is to be had."""
    for model in chosen or (*TOYS, *FAMILIES):
        source = model if model in TOYS else random_model(model, work / "sources" / model)
        ways = {"equal": EQUAL}
        if model in BARRED and (CONF / "export" / "hf_padded.yaml").is_file():
            ways["padded"] = PADDED
        for name, way in ways.items():
            out = work / f"{model}-{name}"
            stun_exp.prune(source, out=out, sparsity=SPARSITY, settings={**QUICK, **way})
            yield Exported(model, name, out / "checkpoint")


def random_model(family: str, folder: Path) -> Path:
    """A folder with a random model of a family, in 32 bits, in which two implementations differ by rounding alone."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
        own = {f"{kind}_token_id": tokenizer.eos_token_id for kind in ("pad", "bos", "eos")}
        shape = {**_SHARED, **own, "vocab_size": len(tokenizer), **FAMILIES[family]}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape))
        for parameter in model.parameters():
            parameter.data.add_(STD * torch.randn_like(parameter))
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def exchange_experts(folder: Path, out: Path) -> Path:
    """A copy of a checkpoint with the first two experts of its last layer exchanged: what a proof must reject."""
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True, exist_ok=True)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    first = [key for key in index if ".experts.0." in key]
    last = max(key.split(".experts.")[0] for key in first)
    pairs = {key: key.replace(".experts.0.", ".experts.1.") for key in first if key.startswith(last)}
    pairs |= {other: key for key, other in pairs.items()}
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
            continue
        tensors = load_file(file)
        save_file({pairs.get(key, key): tensor for key, tensor in tensors.items()}, out / file.name, {"format": "pt"})
    return out
