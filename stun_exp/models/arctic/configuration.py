"""The settings of Arctic, under the names and with the defaults of its published configuration.

Source: `configuration_arctic.py` of Snowflake/snowflake-arctic-base and -instruct. Published settings that only steer
DeepSpeed's training of the experts (`moe_train_capacity_factor`, `moe_eval_capacity_factor`, `moe_min_capacity`,
`moe_token_dropping`, `enable_expert_tensor_parallelism`, `quantization`) are carried from one config.json to the next
and do nothing: the published model drops no token and quantizes nothing unless DeepSpeed runs it.
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class ArcticConfig(PreTrainedConfig):  # type: ignore[misc]
    """Shape of an Arctic model. `rope_theta` in a config.json becomes part of `rope_parameters`, as everywhere."""

    model_type = "arctic"
    keys_to_ignore_at_inference = ("past_key_values",)
    default_theta = 1_000_000.0

    vocab_size: int = 32_000
    hidden_size: int = 4096
    intermediate_size: int = 14_336
    """Width of an expert, and of a dense layer; the residual MLP is as wide as the hidden size."""
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    sliding_window: int | None = None
    attention_dropout: float | int = 0.0
    num_experts_per_tok: int = 1
    num_local_experts: int = 8
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    moe_layer_frequency: int = 2
    """Every how many layers there is one with experts: layers k-1, 2k-1, ... of k, counted from 0."""
    parallel_attn_mlp_res: bool = False
    """Whether a layer with experts also has the residual MLP, and its experts read what attention reads."""

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        super().__post_init__(**kwargs)

    def has_experts(self, layer: int) -> bool:
        """Whether layer number `layer` is a mixture of experts (`ArcticMoE.is_moe_layer`)."""
        return (layer + 1) % self.moe_layer_frequency == 0
