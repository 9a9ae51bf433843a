"""Compare each expert's outputs with those of the expert it came from, or a dense layer's, while a model is trained.

Shapes: T tokens, K experts a token, S = T * K places of a token at an expert, E experts, D hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from stun_exp.moe.layers import MoELayer


def expert_mse(y_SD: Tensor, target_SD: Tensor, expert_S: Tensor, num_experts: int) -> Tensor:
    """Sum over experts of the mean squared error of each, in fp32: over its tokens and outputs; 0 without tokens."""
    count_E = expert_S.bincount(minlength=num_experts)
    error_S = (y_SD.float() - target_SD.float()).square().mean(1)
    return (error_S / count_E[expert_S]).sum()


class ExpertLoss:
    """The expert-wise loss of one forward pass, summed over the layers."""

    def __init__(self) -> None:
        self._layers: list[Tensor] | None = None

    def begin(self) -> None:
        """Said before each forward pass."""
        self._layers = []

    def add(self, loss: Tensor) -> None:
        # The backward pass runs checkpointed layers once more, after `total`: what they say then counts for nothing,
        # and kept here it would hold all that checkpointing is to forget.
        if self._layers is not None:
            self._layers.append(loss)

    def total(self) -> Tensor:
        """The loss of the forward pass since `begin`."""
        assert self._layers, "no taught layer was run since begin()"
        total = torch.stack(self._layers).sum()
        self._layers = None
        return total


@dataclass(frozen=True)
class Lesson:
    """What one layer's experts are held against."""

    teachers: Mapping[int, nn.Module]
    layer: int
    implementation: str
    """Name of transformers' experts function that runs both."""
    loss: ExpertLoss


@contextmanager
def distil_experts(layers: Sequence[MoELayer], teachers: Mapping[int, nn.Module]) -> Iterator[ExpertLoss]:
    """The loss of the layers' experts against `teachers`, experts modules by layer, while they run inside the block.

    Expert i of a layer and of its teacher see the same inputs, those of the layer, for the tokens that it routes to
    expert i. The teacher's outputs are constants: no gradient reaches the layer's inputs through them. The layers'
    outputs do not change. A teacher is looked up whenever its layer runs, and not held: `teachers` may read it anew.
    The teacher of a dense layer is a whole layer, on the same inputs.
    """
    loss = ExpertLoss()
    before, hooks = [], []
    for layer in layers:
        if layer.index in teachers and not layer.is_moe:
            hook = _compare_layer(teachers, layer.index, loss)
            hooks.append(layer.module.register_forward_hook(hook, with_kwargs=True))
        elif layer.index in teachers:
            experts = layer.experts
            before.append((experts, experts.config))
            experts.lesson = Lesson(teachers, layer.index, experts.config._experts_implementation, loss)
            # A copy: the layers of a loaded model share one config.
            experts.config = copy(experts.config)
            experts.config._experts_implementation = "distilled"
    try:
        yield loss
    finally:
        for experts, config in before:
            experts.config = config
            del experts.lesson
        for handle in hooks:
            handle.remove()


def _compare_layer(teachers: Mapping[int, nn.Module], index: int, loss: ExpertLoss) -> Any:
    """A hook that adds the mean squared error of what a dense layer gives."""

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        with torch.no_grad():
            teacher = teachers[index]
            dtype = next(teacher.parameters()).dtype
            target = teacher(*_in(args, dtype), **_in(kwargs, dtype))
        own_BTD, target_BTD = (found[0] if isinstance(found, tuple) else found for found in (output, target))
        loss.add((own_BTD.float() - target_BTD.float()).square().mean())

    return hook


def _in(given: Any, dtype: torch.dtype) -> Any:
    """Arguments with their floats in a dtype: a teacher may be held in 16 bits."""
    if isinstance(given, Tensor):
        return given.to(dtype) if given.is_floating_point() else given
    if isinstance(given, dict):
        return {key: _in(value, dtype) for key, value in given.items()}
    return type(given)(_in(value, dtype) for value in given) if isinstance(given, tuple | list) else given


def _distilled_experts(experts: Any, hidden_TD: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> Tensor:
    """The experts forward that would have run, and the loss of what each expert gives."""
    lesson: Lesson = experts.lesson
    run = ALL_EXPERTS_FUNCTIONS.get_interface(lesson.implementation, unwrap(type(experts).forward))
    # Each place as a token that has one expert, of gate 1: what comes out is then that expert's own output.
    x_SD = hidden_TD.repeat_interleave(topk_index_TK.shape[1], dim=0)
    index_S1 = topk_index_TK.reshape(-1, 1)
    y_SD = run(experts, x_SD, index_S1, torch.ones_like(index_S1, dtype=x_SD.dtype))
    with torch.no_grad():
        teacher: Any = lesson.teachers[lesson.layer]
        # In the teacher's own precision: it may be held in 16 bits.
        given_SD = x_SD.to(teacher.down_proj.dtype)
        target_SD = run(teacher, given_SD, index_S1, torch.ones_like(index_S1, dtype=given_SD.dtype))
    lesson.loss.add(expert_mse(y_SD, target_SD, index_S1[:, 0], experts.down_proj.shape[0]))
    weighted_SD = y_SD * topk_weight_TK.reshape(-1, 1)
    output_TD: Tensor = weighted_SD.view(*topk_index_TK.shape, -1).sum(1).to(hidden_TD.dtype)
    return output_TD


ALL_EXPERTS_FUNCTIONS.register("distilled", _distilled_experts)
