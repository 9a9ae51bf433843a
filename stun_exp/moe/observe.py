"""See every routing decision, expert call and linear input of one decoder layer while it runs.

Shapes: B sequences, T tokens, E experts, K experts a token, N tokens of one expert, D hidden size, F expert width, C
inputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from stun_exp.moe.layers import MoELayer


class Statistic:
    """Something counted while a layer runs; override what it needs. Tensors arrive as they are: keep no reference."""

    chunk_tokens: int | None = None
    """Set by a statistic that wants `all_experts`: how many tokens it takes at once, which bounds the memory."""

    def routing(self, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> None:
        """The router's decision for a batch of tokens; the first call of a batch."""

    def expert(self, expert: int, x_ND: Tensor, h_NF: Tensor, y_ND: Tensor, weight_N: Tensor) -> None:
        """One expert's tokens: input, hidden state before `down_proj`, unweighted output, router weight."""

    every_token: frozenset[int] = frozenset()
    """Experts that a statistic also wants to see on tokens not routed to them, by `expert_everywhere`."""

    def expert_everywhere(self, expert: int, x_TD: Tensor, h_TF: Tensor) -> None:
        """An expert of `every_token` on all tokens of a batch: input, and hidden state before `down_proj`."""

    def all_experts(
        self, y_ETD: Tensor, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor
    ) -> None:
        """Every expert's unweighted output for a chunk of the batch's tokens, chosen for them or not."""

    def reach(self, outputs_TD: Sequence[Tensor]) -> None:
        """Told before a progressive run: what the full model's experts give here, batch by batch."""

    def output(self, y_TD: Tensor) -> None:
        """The weighted sum of the chosen experts for a batch of tokens; the last call of a batch."""

    def linear(self, name: str, x_TC: Tensor) -> None:
        """The input of a plain linear (attention, dense or shared feed-forward)."""

    def gradient(self, name: str, x_NC: Tensor, g_NO: Tensor) -> None:
        """The input of a plain linear and the loss's gradient at its output, where the layer is run backwards."""

    def layer(self, x_BTD: Tensor, y_BTD: Tensor) -> None:
        """The hidden states of a batch that come into the layer, and those that leave it."""

    def state(self) -> dict[str, Any]:
        """What was gathered, as tensors and plain data, for `restore_` to put into an empty statistic of its kind."""
        return dict(vars(self))

    def restore_(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


S = TypeVar("S", bound=Statistic)


def one(kind: type[S], statistics: Sequence[Statistic]) -> S:
    """The one statistic of a kind."""
    (found,) = (statistic for statistic in statistics if isinstance(statistic, kind))
    return found


def chunk_tokens(statistics: Sequence[Statistic]) -> int | None:
    """Tokens at once if every expert has to be run on every token; None if only the chosen ones have to."""
    return min((s.chunk_tokens for s in statistics if s.chunk_tokens is not None), default=None)


@contextmanager
def observe(layer: MoELayer, statistics: Sequence[Statistic]) -> Iterator[None]:
    """Feeds `statistics` whatever runs through `layer` inside the block; the layer's outputs do not change.

    The layer must have a config of its own, as layers read from a checkpoint do: the way experts are run is set there.
    """
    hooks = [layer.module.register_forward_hook(_layer_hook(statistics))]
    for name, linear in layer.linears():
        hooks.append(linear.register_forward_pre_hook(_linear_hook(name, statistics)))
        hooks.append(linear.register_forward_hook(_gradient_hook(name, statistics)))
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


def _layer_hook(statistics: Sequence[Statistic]) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        for statistic in statistics:
            statistic.layer(args[0], output[0] if isinstance(output, tuple) else output)

    return hook


def _linear_hook(name: str, statistics: Sequence[Statistic]) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        for statistic in statistics:
            statistic.linear(name, args[0].flatten(0, -2))

    return hook


def _gradient_hook(name: str, statistics: Sequence[Statistic]) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:
            return
        x_NC = args[0].detach().flatten(0, -2)

        def on_gradient(gradient: Tensor) -> None:
            for statistic in statistics:
                statistic.gradient(name, x_NC, gradient.flatten(0, -2))

        output.register_hook(on_gradient)  # type: ignore[no-untyped-call]

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
    logits_TE = experts.router_logits_TE
    del experts.router_logits_TE
    for statistic in observers:
        statistic.routing(logits_TE, topk_index_TK, topk_weight_TK)
    chunk = chunk_tokens(observers)
    if chunk is None:
        out_TD = _chosen_experts(experts, observers, hidden_TD, topk_index_TK, topk_weight_TK)
    else:
        pieces = (t.split(chunk) for t in (hidden_TD, logits_TE, topk_index_TK, topk_weight_TK))
        out_TD = torch.cat([_every_expert(experts, observers, *piece) for piece in zip(*pieces, strict=True)])
    for statistic in observers:
        statistic.output(out_TD)
    return out_TD


def run_experts(experts: Any, hidden_TD: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> Tensor:
    """The weighted sum of each token's experts, of any experts that keep to transformers' fused form."""
    return _chosen_experts(experts, [], hidden_TD, topk_index_TK, topk_weight_TK)


def _chosen_experts(
    experts: Any, observers: list[Statistic], hidden_TD: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor
) -> Tensor:
    """Each expert on the tokens that chose it."""
    out_TD = torch.zeros_like(hidden_TD)
    weight = topk_weight_TK.flatten()
    for expert, slots in enumerate(_slots(topk_index_TK, experts.down_proj.shape[0])):
        token = slots // topk_index_TK.shape[1]
        x_ND, weight_N = hidden_TD[token], weight[slots]
        h_NF, y_ND = _run(experts, expert, x_ND)
        for statistic in observers:
            statistic.expert(expert, x_ND, h_NF, y_ND, weight_N)
        out_TD.index_add_(0, token, (y_ND * weight_N[:, None]).to(out_TD.dtype))
    for statistic in observers:
        for expert in statistic.every_token:
            h_TF, _ = _run(experts, expert, hidden_TD)
            statistic.expert_everywhere(expert, hidden_TD, h_TF)
    return out_TD


def _every_expert(
    experts: Any,
    observers: list[Statistic],
    hidden_TD: Tensor,
    logits_TE: Tensor,
    topk_index_TK: Tensor,
    topk_weight_TK: Tensor,
) -> Tensor:
    """Each expert on all tokens; the sum is over the chosen ones, as ever."""
    assert not any(statistic.every_token for statistic in observers), "nobody would show them expert_everywhere"
    num_experts = experts.down_proj.shape[0]
    y_ETD = hidden_TD.new_empty(num_experts, *hidden_TD.shape)
    out_TD = torch.zeros_like(hidden_TD)
    weight = topk_weight_TK.flatten()
    for expert, slots in enumerate(_slots(topk_index_TK, num_experts)):
        token = slots // topk_index_TK.shape[1]
        h_TF, y_ETD[expert] = _run(experts, expert, hidden_TD)
        y_ND, weight_N = y_ETD[expert, token], weight[slots]
        for statistic in observers:
            statistic.expert(expert, hidden_TD[token], h_TF[token], y_ND, weight_N)
        out_TD.index_add_(0, token, (y_ND * weight_N[:, None]).to(out_TD.dtype))
    for statistic in observers:
        if statistic.chunk_tokens is not None:
            statistic.all_experts(y_ETD, logits_TE, topk_index_TK, topk_weight_TK)
    return out_TD


def _slots(topk_index_TK: Tensor, num_experts: int) -> Sequence[Tensor]:
    """For each expert, the places in the flattened top-k that chose it, in the order of the tokens.

    A place numbered `num_experts` is nobody's: its token was over an expert's capacity.
    """
    # One stable sort instead of a search per expert.
    order = topk_index_TK.flatten().argsort(stable=True)
    counts = torch.bincount(topk_index_TK.flatten(), minlength=num_experts)
    return torch.split(order, counts.tolist())[:num_experts]


def _run(experts: Any, expert: int, x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden state before `down_proj`, and the output, of one expert."""
    up = _linear(experts, x_ND, "gate_up_proj" if experts.has_gate else "up_proj", expert)
    h_NF = experts._apply_gate(up) if experts.has_gate else experts.act_fn(up)
    return h_NF, _linear(experts, h_NF, "down_proj", expert)


def _linear(experts: Any, x_NC: Tensor, name: str, expert: int) -> Tensor:
    weight = getattr(experts, name)[expert]
    bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    return nn.functional.linear(x_NC, weight.mT if experts.is_transposed else weight, bias)


ALL_EXPERTS_FUNCTIONS.register("observed", _observed_experts)
