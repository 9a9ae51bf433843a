"""What the bundled toy models are: their shapes, and everything that decides their weights."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import MixtralConfig, PreTrainedConfig, PreTrainedTokenizerFast

from stun_exp.models.arctic.configuration import ArcticConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, apart from the world and the device's arithmetic."""

    steps: int
    restart_step: int
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


TOYS: dict[str, tuple[Recipe, Callable[[PreTrainedTokenizerFast], PreTrainedConfig]]] = {
    "toy_moe": (RECIPE, toy_config),
    "toy_arctic": (ARCTIC_RECIPE, toy_arctic_config),
}
"""Recipe and shape of each bundled model."""
