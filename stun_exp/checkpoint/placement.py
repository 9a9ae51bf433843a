"""Which part of a model goes to which device, where one device is too small for it; accelerate does the moving.

Places are module name -> device: a GPU by its number, or "cpu" for what lies in host memory and is brought to the first
GPU each time that it runs. A name stands for everything inside the module; "" is the whole model.
"""

import logging
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from transformers import PreTrainedModel

from stun_exp.checkpoint.architecture import Architecture
from stun_exp.checkpoint.nf4 import quantize_
from stun_exp.moe.layers import layers_of

Places = Mapping[str, Any]
FOR_WEIGHTS = 0.9
"""Share of a device's free memory that weights may take; activations, and the KV cache, need the rest."""


def free_memory() -> dict[Any, int]:
    """Bytes that weights may take on each GPU, by its number, and in host memory ("cpu")."""
    from accelerate.utils import get_max_memory

    torch.cuda.empty_cache()  # what earlier work left in torch's own pool would count as taken
    return {device: int(FOR_WEIGHTS * free) for device, free in get_max_memory().items()}


def find_places(architecture: Architecture, nf4: bool, free: Mapping[Any, int]) -> dict[str, Any]:
    """Where each part of the model goes, spread evenly over the GPUs, and into host memory only if those are full.

    Decoder layers stay whole. Reads no weights: sizes are counted on the model as it will be held. ValueError if `free`
    is too little.
    """
    from accelerate.utils import compute_module_sizes, get_balanced_memory, infer_auto_device_map

    model = deepcopy(architecture.skeleton)
    if nf4:
        for layer in layers_of(model, architecture.family):
            quantize_(layer)
    whole = sorted({type(layer.module).__name__ for layer in architecture.outlines})
    budget = get_balanced_memory(model, dict(free), no_split_module_classes=whole)
    places = dict(infer_auto_device_map(model, budget, no_split_module_classes=whole, offload_buffers=True))
    if "disk" in places.values() or _first_device(model, places) == "cpu":
        needed = compute_module_sizes(model)[""]
        room = ", ".join(f"{'host' if device == 'cpu' else f'GPU {device}'} {_gb(free[device])}" for device in free)
        raise ValueError(
            f"eval.device_map=auto: the weights take {_gb(needed)} and there is room for {room}, where the first GPU "
            "must have some left for the largest layer; pass model.load=nf4, or eval=none and evaluate checkpoint/ on "
            "a larger machine"
        )
    return places


def place_of(name: str, places: Places) -> Any:
    """The device of the module or parameter called `name`."""
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), -1, -1))
    return next(places[prefix] for prefix in prefixes if prefix in places)


def dispatch_(model: PreTrainedModel, places: Places) -> None:
    """Moves each part of a model to its place, and makes the hidden states follow when it runs.

    A layer in host memory is empty between its runs.
    """
    from accelerate import dispatch_model

    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)  # warns of layers that are empty between runs
    dispatch_model(
        model,
        dict(places),
        main_device=_first_device(model, places),
        offload_buffers=True,  # the scales of 4-bit weights are buffers
        skip_keys=model._skip_keys_device_placement,
    )


def _first_device(model: PreTrainedModel, places: Places) -> Any:
    """The device of the embeddings: inputs go there."""
    return place_of(next(name for name, _ in model.named_parameters()), places)


def _gb(size: float) -> str:
    return f"{size / 1e9:,.3g} GB"
