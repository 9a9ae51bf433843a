"""Benchmarks of running models: what observing costs, and what weights in 4 bits take."""

from copy import deepcopy
from typing import Any

from scripts.benchmarks.timing import alternate, ratio


def observe_over_forward() -> dict[str, Any]:
    """A Mixtral layer (16 experts of 512 x 1,024) that gathers what STUN and Wanda need, over a plain forward of it.

    8 x 512 tokens; at most 1.3. The plain forward is transformers' own, in the implementation that it chooses.
    """
    import torch
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer, MixtralRotaryEmbedding

    from stun_exp.moe.families import FAMILIES
    from stun_exp.moe.inputs import InputStatistics
    from stun_exp.moe.layers import MoELayer
    from stun_exp.moe.observe import observe
    from stun_exp.moe.statistics import Coactivation, ExpertTokens
    from stun_exp.unstructured_pruner.masks import SquaredNorm

    torch.manual_seed(0)
    config = MixtralConfig(hidden_size=512, intermediate_size=1024, num_attention_heads=8, num_local_experts=16)
    config._attn_implementation, config._experts_implementation = "sdpa", "grouped_mm"
    layer = MoELayer(MixtralDecoderLayer(config, 0).eval().requires_grad_(False), 0, FAMILIES["mixtral"])
    for parameter in layer.module.parameters():
        parameter.normal_(std=0.05)
    hidden_BTD = torch.randn(8, 512, 512)
    positions = MixtralRotaryEmbedding(config)(hidden_BTD, torch.arange(512)[None])

    @torch.inference_mode()
    def plain() -> None:
        layer.module(hidden_BTD, position_embeddings=positions, attention_mask=None)

    @torch.inference_mode()
    def observed() -> None:
        norms = InputStatistics(layer, list(layer.matrices()), SquaredNorm)
        with observe(layer, [norms, ExpertTokens(16), Coactivation(16)]):
            layer.module(hidden_BTD, position_embeddings=positions, attention_mask=None)

    return {**ratio(*alternate(observed, plain, repeats=9)), "unit": "times a plain forward"}


def nf4_expert_bytes_ratio() -> dict[str, Any]:
    """The bytes of a Mixtral layer's experts (8 of 256 x 512) in NF4, scales included, over bfloat16; at most 0.30."""
    import torch
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer

    from stun_exp.checkpoint.nf4 import check_memory, memory, quantize_
    from stun_exp.moe.families import FAMILIES
    from stun_exp.moe.layers import MoELayer

    torch.manual_seed(0)
    config = MixtralConfig(hidden_size=256, intermediate_size=512, num_attention_heads=4, num_local_experts=8)
    module = MixtralDecoderLayer(config, 0).bfloat16().requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(std=0.05)
    full = MoELayer(module, 0, FAMILIES["mixtral"])
    layer = deepcopy(full)
    quantize_(layer)
    parts = memory([layer], [full])
    check_memory(parts)
    (experts,) = (part for part in parts if part.part == "experts")
    return {**ratio(experts.bytes, 2 * experts.parameters), "unit": "of the bytes"}
