"""The four families whose experts transformers does not keep in fused 3-D tensors, given that form.

Their blocks are replaced in a model without weights, and the keys on disk are mapped to the new tensors, so that every
family looks the same to whoever observes, prunes, merges or quantizes experts. What a model computes does not change.

Shapes: E experts, F expert width, D hidden size, T tokens, K experts a token.
"""

from importlib import import_module

from transformers import PreTrainedModel

from stun_exp.moe.families import MoEFamily
from stun_exp.moe.layers import layers_of

MODULES = {
    "dbrx": "dbrx",
    "llama4_text": "llama4",
    "nllb-moe": "nllb_moe",
    "switch_transformers": "switch_transformers",
}
"""Family -> the module here that has its `fuse_` and `conversions`, imported when a model of the family is met."""


def fuse_experts_(model: PreTrainedModel, family: MoEFamily) -> None:
    """Gives the experts of `model`, which is on the meta device, the fused form if they lack it.

    ValueError for a setting under which a family's experts cannot be handled.
    """
    if family.model_type not in MODULES:
        return
    module = import_module(f"stun_exp.models.{MODULES[family.model_type]}")
    for layer in layers_of(model, family):
        if layer.is_moe:
            dtype = next(layer.experts.parameters()).dtype
            module.fuse_(layer.block, model.config)
            layer.experts.to(dtype)
    model._weight_conversions = module.conversions(model.config)
