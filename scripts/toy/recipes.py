"""What the bundled toy models are: their shapes, and everything that decides their weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from transformers import LlamaConfig, MixtralConfig, PreTrainedConfig, PreTrainedTokenizerFast

from stun_exp.models.arctic.configuration import ArcticConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, apart from the world and the device's arithmetic."""

    steps: int
    restart_step: int | None = None  # where a second cosine begins; without: constant, and a line down at the end
    batch_size: int
    sequence_length: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    balance_weight: float
    answer_weight: float
    seed: int


RECIPE = Recipe(
    steps=5900,
    restart_step=3500,
    batch_size=8,
    sequence_length=512,
    learning_rate=2e-3,
    warmup_steps=200,
    weight_decay=0.05,
    balance_weight=0.01,
    answer_weight=3.0,
    seed=0,
)
ARCTIC_RECIPE = Recipe(
    steps=2000,
    restart_step=2000,  # never: one cosine from peak to end
    batch_size=4,
    sequence_length=512,
    learning_rate=3e-3,
    warmup_steps=100,
    weight_decay=0.05,
    balance_weight=0.01,
    answer_weight=3.0,
    seed=0,
)


def toy_config(tokenizer: PreTrainedTokenizerFast) -> MixtralConfig:
    """The shape of the shipped model: 4 layers of 32 experts, two per token, 3.9 million parameters."""
    return MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=32,
        num_experts_per_tok=2,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        initializer_range=0.05,
        tie_word_embeddings=False,
        output_router_logits=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def toy_arctic_config(tokenizer: PreTrainedTokenizerFast) -> ArcticConfig:
    """The shape of the shipped Arctic: layers 1 and 3 of 4 have 16 experts, two per token, and a residual MLP."""
    return ArcticConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=16,
        num_experts_per_tok=2,
        moe_layer_frequency=2,
        parallel_attn_mlp_res=True,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


DENSE_RECIPE = Recipe(
    steps=2000,
    batch_size=8,
    sequence_length=512,
    learning_rate=2e-3,
    warmup_steps=200,
    weight_decay=0.05,
    balance_weight=0.0,
    answer_weight=3.0,
    seed=0,
)
UPCYCLED_RECIPE = replace(DENSE_RECIPE, steps=6000, learning_rate=1e-3, warmup_steps=100, balance_weight=0.01, seed=1)
CONTINUED_RECIPE = replace(UPCYCLED_RECIPE, steps=3000, learning_rate=2e-3, seed=2)


DENSE_WIDTH = 128
LADDER_WIDTH = 1024
"""Of all experts of a layer together; a quarter of them is chosen for each token."""


def _dense_config(tokenizer: PreTrainedTokenizerFast, width: int) -> LlamaConfig:
    return LlamaConfig(**_common(tokenizer), intermediate_size=width, rms_norm_eps=1e-5)  # Mixtral's


def _upcycled_config(tokenizer: PreTrainedTokenizerFast, width: int, experts: int, top_k: int) -> MixtralConfig:
    return MixtralConfig(
        **_common(tokenizer),
        intermediate_size=width,
        num_local_experts=experts,
        num_experts_per_tok=top_k,
        output_router_logits=False,
    )


def _common(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "initializer_range": 0.05,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


@dataclass(frozen=True)
class Phase:
    """One training: from random weights, or from the phase before it, whose feed-forward, if dense, becomes experts."""

    recipe: Recipe
    config: Callable[[PreTrainedTokenizerFast], PreTrainedConfig]


def upcycled(width: int, experts: int, top_k: int, dense: Recipe, *mixture: Recipe) -> tuple[Phase, ...]:
    """A dense model with a feed-forward of 128, then experts that begin as copies of it, or of slices of it."""
    config = partial(_upcycled_config, width=width, experts=experts, top_k=top_k)
    return Phase(dense, partial(_dense_config, width=DENSE_WIDTH)), *(Phase(recipe, config) for recipe in mixture)


def _rung(experts: int) -> tuple[Phase, ...]:
    """A toy with as many parameters and as many active ones as every other rung of the ladder."""
    short = (replace(DENSE_RECIPE, steps=1000), replace(UPCYCLED_RECIPE, steps=1500))
    return upcycled(LADDER_WIDTH // experts, experts, experts // 4, *short)


TOYS: dict[str, tuple[Phase, ...]] = {
    "toy_moe": (Phase(RECIPE, toy_config),),
    "toy_arctic": (Phase(ARCTIC_RECIPE, toy_arctic_config),),
    "toy_dense": (Phase(DENSE_RECIPE, partial(_dense_config, width=DENSE_WIDTH)),),
    "toy_upcycled": upcycled(128, 16, 2, DENSE_RECIPE, UPCYCLED_RECIPE, CONTINUED_RECIPE),
    **{f"ladder_{experts}": _rung(experts) for experts in (8, 16, 32, 64, 128, 256)},
}
"""How each toy model is made: those that are bundled, and the ladder, one world and budget for 8 to 256 experts."""
