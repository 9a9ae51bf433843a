"""A checkpoint as a model ready to run."""

from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from stun_exp.disk.checkpoint import Checkpoint
from stun_exp.nf4 import quantise_


def load_pruned(path: Path, device: torch.device, nf4: bool = False) -> PreTrainedModel:
    """A written checkpoint as a model ready to run, in its own dtype or with its layers in 4 bits.

    It is put together layer by layer, so that no more than one lies there in full when the others are quantised.

    Stock transformers gives the same model where all layers keep equally many experts; it has no setting for others.
    """
    checkpoint = Checkpoint(path, None)
    model = checkpoint.read_shell()
    for index, name in enumerate(checkpoint.paths):
        layer = checkpoint.read_layer(index)
        # What is set in the model's config, the way attention is run, say, holds for its layers too.
        for part, empty in zip(layer.module.modules(), model.get_submodule(name).modules(), strict=True):
            if hasattr(empty, "config"):
                part.config = empty.config
        layer.module.to(device)
        if nf4:
            quantise_(layer)
        model.set_submodule(name, layer.module)
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model.to(device).eval()
