"""Whether models fit in memory side by side, and what they are to read in them."""

from collections.abc import Iterable

import torch

from stun_exp.checkpoint.architecture import Architecture
from stun_exp.inference.records import Workload
from stun_exp.state.device import machine


def size_of(architecture: Architecture) -> int:
    """Bytes of a model's weights in memory, in its own dtype."""
    return architecture.num_parameters * architecture.dtype.itemsize


def room_on(device: torch.device) -> int:
    """Bytes of a device's memory."""
    return machine()["GPU" if device.type == "cuda" else "RAM"]


def check_fits(models: Iterable[Architecture], device: torch.device, nf4: bool) -> None:
    """ValueError if the models do not fit in memory side by side; those in 4 bits are not looked at."""
    needed, room = sum(map(size_of, models)), room_on(device)
    if not nf4 and needed > room:
        raise ValueError(
            f"inference=measure: unpruned and pruned model are held side by side, up to {needed / 1e9:,.1f} GB, and "
            f"this machine has {room / 1e9:,.1f} GB ({device.type}); pass inference=none save=true, and measure with "
            "stun speed on a larger machine"
        )


def check_length(model: Architecture, workload: Workload) -> None:
    """ValueError if prompts and what is generated behind them are longer than a model takes."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and workload.prompt_tokens + workload.new_tokens > longest:
        raise ValueError(
            f"inference.prompt_tokens={workload.prompt_tokens} and inference.new_tokens={workload.new_tokens}: the "
            f"model takes at most {longest} tokens (max_position_embeddings); lower them"
        )
