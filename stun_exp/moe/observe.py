"""See every routing decision, expert call and linear input of one decoder layer while it runs.

Shapes: T tokens, E experts, K experts a token, N tokens of one expert, D hidden size, F expert width, C inputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from stun_exp.moe.layers import MoELayer


class Statistic:
    """Something counted while a layer runs; override what it needs. Tensors arrive as they are: keep no reference."""

    def routing(self, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> None:
        """The router's decision for a batch of tokens."""

    def expert(self, expert: int, x_ND: Tensor, h_NF: Tensor, y_ND: Tensor, weight_N: Tensor) -> None:
        """One expert's tokens: input, hidden state before `down_proj`, unweighted output, router weight."""

    def linear(self, name: str, x_TC: Tensor) -> None:
        """The input of a plain linear (attention, dense or shared feed-forward)."""


@contextmanager
def observe(layer: MoELayer, statistics: Sequence[Statistic]) -> Iterator[None]:
    """Feeds `statistics` whatever runs through `layer` inside the block; the layer's outputs do not change.

    The layer must have a config of its own, as layers read from a checkpoint do: the way experts are run is set there.
    """
    hooks = []
    for name, linear in layer.linears():
        hooks.append(linear.register_forward_pre_hook(_linear_hook(name, statistics)))
    if layer.is_moe:
        hooks.append(layer.router.register_forward_hook(_keep_logits(layer.experts)))
        config = layer.experts.config
        implementation = config._experts_implementation
        config._experts_implementation = "observed"
        layer.experts.observers = list(statistics)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        if layer.is_moe:
            config._experts_implementation = implementation
            del layer.experts.observers


def _linear_hook(name: str, statistics: Sequence[Statistic]) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        for statistic in statistics:
            statistic.linear(name, args[0].flatten(0, -2))

    return hook


def _keep_logits(experts: Any) -> Any:
    # The order of a router's outputs differs between families, but the logits come first in all of them; the
    # choice itself is read where it is used, in the experts' call.
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        experts.router_logits_TE = output[0].flatten(0, -2)

    return hook


def _observed_experts(experts: Any, hidden_TD: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> Tensor:
    """transformers' experts forward, one expert at a time, that shows each call to the observers."""
    observers: list[Statistic] = experts.observers
    for statistic in observers:
        statistic.routing(experts.router_logits_TE, topk_index_TK, topk_weight_TK)
    del experts.router_logits_TE
    num_experts, top_k = experts.down_proj.shape[0], topk_index_TK.shape[1]
    # A stable sort by expert leaves each expert's tokens in their order: one pass instead of a search per expert.
    order = topk_index_TK.flatten().argsort(stable=True)
    counts = torch.bincount(topk_index_TK.flatten(), minlength=num_experts).tolist()
    weight = topk_weight_TK.flatten()
    out_TD = torch.zeros_like(hidden_TD)
    for expert, slots in enumerate(torch.split(order, counts)):
        token = slots // top_k
        x_ND, weight_N = hidden_TD[token], weight[slots]
        up = _linear(experts, x_ND, "gate_up_proj" if experts.has_gate else "up_proj", expert)
        h_NF = experts._apply_gate(up) if experts.has_gate else experts.act_fn(up)
        y_ND = _linear(experts, h_NF, "down_proj", expert)
        for statistic in observers:
            statistic.expert(expert, x_ND, h_NF, y_ND, weight_N)
        out_TD.index_add_(0, token, (y_ND * weight_N[:, None]).to(out_TD.dtype))
    return out_TD


def _linear(experts: Any, x_NC: Tensor, name: str, expert: int) -> Tensor:
    weight = getattr(experts, name)[expert]
    bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    return nn.functional.linear(x_NC, weight.mT if experts.is_transposed else weight, bias)


ALL_EXPERTS_FUNCTIONS.register("observed", _observed_experts)
