"""Parts of a training that keeps zeros where they are and can be interrupted: batches, rate, zeros, state.

Shapes: N sequences, B of a batch, T tokens, V vocabulary.
"""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stun_exp.moe.layers import MoELayer
from stun_exp.utils.files import whole_file

Zeros = list[tuple[Tensor, Tensor]]
"""Parameters, and where they are zero and are to stay so."""


def batch_BT(sequences_NT: Tensor, batch_size: int, step: int, seed: int) -> Tensor:
    """The sequences of one step; each epoch has an order of its own, and the last batch of one may be short.

    A function of seed and step alone, so an interrupted training needs no state of a stream.
    """
    epoch, number = divmod(step, -(-len(sequences_NT) // batch_size))
    generator = torch.Generator().manual_seed(int(sha256(f"{seed} {epoch}".encode()).hexdigest()[:15], 16))
    order_N = torch.randperm(len(sequences_NT), generator=generator)
    return sequences_NT[order_N[number * batch_size : (number + 1) * batch_size]]


def cosine(done: float) -> float:
    """Share of the learning rate when the share `done` of the steps is done: 1 at the start, 0 at the end."""
    return (1 + math.cos(math.pi * done)) / 2


def language_loss(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """Mean next-token cross entropy."""
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten())


def zeros_of(layers: Sequence[MoELayer]) -> Zeros:
    """The zeros of all prunable matrices."""
    zeros = []
    for layer in layers:
        prunable = [linear.weight for _, linear in layer.linears()]
        if layer.is_moe:
            prunable += [tensor for tensor in layer.experts.parameters() if tensor.ndim == 3]  # matrices, not biases
        zeros += [(tensor, tensor.detach() == 0) for tensor in prunable]
    return zeros


def hold(zeros: Zeros) -> None:
    """Takes the gradient from weights that are to stay zero.

    AdamW then has nothing to move them with, and nothing to remember of them; and they do not count in the gradient's
    norm. Set to zero after a step instead, they would do both.
    """
    for parameter, where in zeros:
        if parameter.grad is not None:
            parameter.grad.masked_fill_(where, 0)


def forget_activations(model: Any, layers: Sequence[MoELayer]) -> None:
    """Makes the backward pass run each layer again instead of keeping what it computed."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    for layer in layers:
        # transformers forgets in training alone. The flag of the layer, and not of what is in it: dropout and noisy
        # routers stay off, what is trained is what will run.
        layer.module.training = True


@dataclass
class History:
    """The losses of every step so far, before the step; and what the training took."""

    expert_weight: float | None = None
    """Factor of the expert-wise loss; None before the first batch."""
    language: list[float] = field(default_factory=list)
    expert: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def step(self) -> int:
        return len(self.language)


def course(losses: Sequence[float]) -> dict[str, Any]:
    """The loss of the first batch and of the last, and the mean of each tenth of the steps (of fewer, if there are)."""
    pieces = min(10, len(losses))
    edges = [len(losses) * piece // pieces for piece in range(pieces + 1)]
    means = [sum(losses[a:b]) / (b - a) for a, b in pairwise(edges)]
    return {"first": losses[0], "last": losses[-1], "tenths": means}


class Saved:
    """A file with all that an interrupted training needs to go on as if nothing had happened."""

    def __init__(self, file: Path, made_for: Any):
        self.file = file
        self.made_for = sha256(json.dumps(made_for, sort_keys=True).encode()).hexdigest()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, warn: Callable[[str], None]) -> History:
        """The history so far, with model and optimizer put back where they were; an empty one if nothing is saved."""
        if not self.file.exists():
            return History()
        state: dict[str, Any] = torch.load(self.file, map_location="cpu", weights_only=True)
        if state["made_for"] != self.made_for:
            warn(
                f"{self.file} is left from another training (its settings, text or pruned weights differ) and is not "
                "used; training starts from the first step"
            )
            return History()
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return History(**state["history"])

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, history: History) -> None:
        """Writes the state whole or not at all; OSError that names the file, for instance if the disk is full."""
        self.file.parent.mkdir(exist_ok=True)
        state = {
            "made_for": self.made_for,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": asdict(history),
        }
        try:
            with whole_file(self.file) as handle:
                torch.save(state, handle)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError when the disk is full
            raise OSError(
                f"{self.file}: could not be written ({str(error).splitlines()[0]}); free some space, raise "
                "recovery.save_every, or choose another disk with hydra.run.dir=DIR"
            ) from error

    def remove(self) -> None:
        """Said when the trained weights are written."""
        self.file.unlink(missing_ok=True)
        with suppress(OSError):  # somebody has put something else there
            self.file.parent.rmdir()
