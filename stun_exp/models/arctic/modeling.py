"""Snowflake Arctic as published: the stack of layers, and the causal language model.

Source: `ArcticModel` and `ArcticForCausalLM` in `modeling_arctic.py` of Snowflake/snowflake-arctic-base; the cache, the
masks and the recording of outputs are transformers 5's own.
Shapes: B sequences, S positions, T = B * S tokens, D hidden size, E experts, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.mixtral.modeling_mixtral import (
    MixtralAttention,
    MixtralExperts,
    MixtralRMSNorm,
    MixtralRotaryEmbedding,
    load_balancing_loss_func,
)
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from stun_exp.models.arctic.configuration import ArcticConfig
from stun_exp.models.arctic.layers import ArcticDecoderLayer, ArcticTopKRouter


class ArcticPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What transformers needs to know of the architecture to initialize, place and observe it."""

    config_class = ArcticConfig
    base_model_prefix = "model"
    _no_split_modules = ("ArcticDecoderLayer",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012
        "router_logits": OutputRecorder(ArcticTopKRouter, index=0),
        "hidden_states": ArcticDecoderLayer,
        "attentions": MixtralAttention,
    }

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for its decorator in this file, and the decorated experts are Mixtral's.
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MixtralExperts | ArcticTopKRouter):
            for parameter in module.parameters():
                init.normal_(parameter, mean=0.0, std=self.config.initializer_range)


class ArcticModel(ArcticPreTrainedModel):
    """The stack of layers without the head."""

    def __init__(self, config: ArcticConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(ArcticDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = MixtralRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = MixtralRotaryEmbedding(config)
        self.post_init()

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """The last hidden states (B x S x D) and the cache; router logits by layer (T x E) if asked for."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden_BSD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (past + torch.arange(hidden_BSD.shape[1], device=hidden_BSD.device))[None]
        make_mask = create_causal_mask if self.config.sliding_window is None else create_sliding_window_causal_mask
        arguments = {
            "attention_mask": make_mask(
                config=self.config,
                inputs_embeds=hidden_BSD,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            ),
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "position_embeddings": self.rotary_emb(hidden_BSD, position_ids=position_ids),
        }
        for layer in self.layers:
            hidden_BSD = layer(hidden_BSD, **arguments, **kwargs)
        return MoeModelOutputWithPast(last_hidden_state=self.norm(hidden_BSD), past_key_values=past_key_values)


class ArcticForCausalLM(ArcticPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Arctic with its language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: ArcticConfig):
        super().__init__(config)
        self.model = ArcticModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Logits (B x S x V); with `labels` the mean next-token loss too.

        With router logits also the sum over layers of the load-balancing loss (`load_balancing_loss_func`), which is
        added to the loss, times `router_aux_loss_coef`. The published code adds it whenever there are labels.
        """
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_router_logits=output_router_logits,
            **kwargs,
        )
        logits_BSV = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = auxiliary = None
        if labels is not None:
            loss = self.loss_function(logits_BSV, labels, self.config.vocab_size, **kwargs)
        if output_router_logits:
            auxiliary = sum(
                load_balancing_loss_func((logits_TE,), logits_TE.shape[-1], self.config.num_experts_per_tok)
                for logits_TE in outputs.router_logits
            )
            if loss is not None:
                loss = loss + self.config.router_aux_loss_coef * auxiliary
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=auxiliary,
            logits=logits_BSV,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )
