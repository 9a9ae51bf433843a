"""The four families whose experts transformers does not keep in fused 3-D tensors, given that form.

Their blocks are replaced in a model without weights, and the keys on disk are mapped to the new tensors, so that every
family looks the same to whoever observes, prunes, merges or quantises experts. What a model computes does not change.

Shapes: E experts, F expert width, D hidden size, T tokens, K experts a token.
"""

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightTransform

from stun_exp.models import dbrx, llama4, nllb_moe, switch_transformers
from stun_exp.moe.families import MoEFamily
from stun_exp.moe.layers import layers_of

FAMILIES: dict[str, tuple[Callable[[nn.Module, Any], None], Callable[[Any], list[WeightTransform]]]] = {
    "dbrx": (dbrx.fuse_, dbrx.conversions),
    "llama4_text": (llama4.fuse_, llama4.conversions),
    "nllb-moe": (nllb_moe.fuse_, nllb_moe.conversions),
    "switch_transformers": (switch_transformers.fuse_, switch_transformers.conversions),
}


def fuse_experts_(model: PreTrainedModel, family: MoEFamily) -> None:
    """Gives the experts of `model`, which is on the meta device, the fused form if they lack it.

    ValueError for a setting under which a family's experts cannot be handled.
    """
    if family.model_type not in FAMILIES:
        return
    fuse_, conversions = FAMILIES[family.model_type]
    for layer in layers_of(model, family):
        if layer.is_moe:
            dtype = next(layer.experts.parameters()).dtype
            fuse_(layer.block, model.config)
            layer.experts.to(dtype)
    model._weight_conversions = conversions(model.config)
