"""The code that lets transformers read layers of different sizes, written into the folder of a checkpoint."""

import json

import transformers

from stun_exp.checkpoint.architecture import Architecture
from stun_exp.checkpoint.writer import CODE
from stun_exp.utils.files import read_json_object, write_file

_CODE = '''"""{stock} with as many experts in each layer as per_layer_config says in config.json.

Written by stun, which pruned the model. Needs transformers {version} or later, and nothing else.
"""

from transformers import {stock}


class Pruned{stock}({stock}):
    """The stock model, its layers built one by one."""

    def __init__(self, config):
        overrides = config.to_dict()["per_layer_config"]
        config.per_layer_config = None  # the stock model reads one expert count for all layers
        super().__init__(config)
        config.per_layer_config = overrides
        layers = self.get_submodule("{stack}")
        for index, own in enumerate(config.per_layer_config):
            layers[index] = type(layers[index])(own, index)
        for module in layers.modules():
            if hasattr(module, "config"):
                module.config = config  # what is set there later, the kind of attention, say, holds for all
        self.post_init()
'''


def obstacle(architecture: Architecture) -> str | None:
    """Why no such code can be written for an architecture; None if it can."""
    family, stock = architecture.family, type(architecture.skeleton).__name__
    if not hasattr(transformers, stock):
        return f"transformers {transformers.__version__} has no {stock}, of which the code would be a subclass"
    if len(family.stacks) > 1:
        return f"per_layer_config numbers the layers of one stack, and {family.model_type} has an encoder and a decoder"
    if family.num_experts_key is None:
        return "the model is dense, and widths of its layers are not among what per_layer_config says here"
    if "." in family.num_experts_key:
        return f"{family.num_experts_key} lies in a part of the config, where per_layer_config does not reach"
    return None


def write_code(written: Architecture) -> None:
    """Adds modeling_stun.py to a folder whose layers keep different numbers, and what leads to it to config.json."""
    counts = written.experts_per_layer
    assert counts
    assert obstacle(written) is None
    stock = type(written.skeleton).__name__
    names = {"stock": stock, "stack": written.family.stacks[0], "version": transformers.__version__}
    write_file(written.path / CODE, [_CODE.format(**names).encode()])
    config = read_json_object(written.path / "config.json")
    key = written.family.num_experts_key
    assert key is not None
    # The name that the layers read: under another, asking for the count of all layers would pass unnoticed.
    key = written.config.attribute_map.get(key, key)
    config["per_layer_config"] = {str(index): {key: count} for index, count in enumerate(counts) if count}
    config["auto_map"] = {"AutoModelForCausalLM": f"{CODE.removesuffix('.py')}.Pruned{stock}"}
    write_file(written.path / "config.json", [(json.dumps(config, indent=1) + "\n").encode()])
