"""A checkpoint as a model ready to run."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.nf4 import quantize_
from stun_exp.checkpoint.placement import Places, dispatch_, place_of
from stun_exp.moe.layers import MoELayer


def load_checkpoint(
    path: Path, device: torch.device, nf4: bool = False, places: Places | None = None
) -> PreTrainedModel:
    """A written checkpoint as a model ready to run, in its own dtype or with its layers in 4 bits.

    All of it on `device`, or spread over several by `places`.

    Stock transformers gives the same model where all layers keep equally many experts; for others it needs the code
    that export=hf_unequal writes.
    """
    return assemble(Checkpoint(path, None), device, nf4, places=places)


def assemble(
    checkpoint: Checkpoint,
    device: torch.device,
    nf4: bool = False,
    edit: Callable[[MoELayer], None] = lambda layer: None,
    places: Places | None = None,
) -> PreTrainedModel:
    """The whole model of a checkpoint, `edit` applied to each layer as it is read.

    It is put together layer by layer, so that no more than one lies there in full when the others are quantized.
    """
    model = checkpoint.read_shell()
    for index, name in enumerate(checkpoint.paths):
        layer = checkpoint.read_layer(index)
        edit(layer)
        # What is set in the model's config, the way attention is run, say, holds for its layers too.
        for part, empty in zip(layer.module.modules(), model.get_submodule(name).modules(), strict=True):
            if hasattr(empty, "config"):
                part.config = empty.config
        if nf4:
            layer.module.to(device)
            quantize_(layer)
        layer.module.to(place_of(name, places) if places else device)
        model.set_submodule(name, layer.module)
    if (checkpoint.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.path)
    if places:
        dispatch_(model, places)
    else:
        model.to(device)
    return model.eval()
