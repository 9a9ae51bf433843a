"""Run only those of a token's experts that its gates call for, while a model is in use (Lu et al., arXiv 2402.14800).

Shapes: T tokens, K experts a token, I = K - 1 places at which a token's experts can be cut, D hidden size.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from stun_exp.moe.families import MoEFamily
from stun_exp.moe.layers import layers_of
from stun_exp.moe.observe import Statistic


def tail_to_head_TI(weight_TK: Tensor) -> Tensor:
    """For each place to cut a token's gates, largest first: the sum of those behind it over that of those before it.

    Falls along a row; the last entry is w_K / (w_1 + ... + w_{K-1}). Scaling a token's gates changes nothing, so
    before or after renormalization is the same.
    """
    sorted_TK = weight_TK.float().sort(dim=1, descending=True).values
    # Summed from the small end, not by subtraction: with K = 2 the entry is exactly w_2 / w_1.
    tail_TK = sorted_TK.flip(1).cumsum(1).flip(1)
    return tail_TK[:, 1:] / sorted_TK.cumsum(1)[:, :-1]


def kept_TK(weight_TK: Tensor, beta: float) -> Tensor:
    """Which experts of each token run: its largest gates, the fewest whose tail is below beta times their sum."""
    num_kept_T1 = 1 + (tail_to_head_TI(weight_TK) >= beta).sum(1, keepdim=True)
    ranked_TK = torch.arange(weight_TK.shape[1], device=weight_TK.device) < num_kept_T1
    order_TK = weight_TK.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(ranked_TK).scatter(1, order_TK, ranked_TK)


class GateRatios(Statistic):
    """The tail-to-head ratios of all tokens."""

    def __init__(self) -> None:
        self._batches_TI: list[Tensor] = []

    def routing(self, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> None:
        ratio_TI = tail_to_head_TI(topk_weight_TK).cpu()
        self._batches_TI.append(ratio_TI[~ratio_TI.isnan().any(1)])  # a token over capacity has no gates to compare

    def ratio_TI(self) -> Tensor:
        return torch.cat(self._batches_TI)

    def skipped(self, beta: float) -> float:
        """Share of the tokens' experts that are skipped at `beta`."""
        ratio_TI = self.ratio_TI()
        # Ratios fall along a row: as many are below beta as experts go.
        return int((ratio_TI < beta).sum()) / (len(ratio_TI) * (ratio_TI.shape[1] + 1))


@dataclass(frozen=True)
class Skipped:
    """How many experts the tokens of a layer chose, and how many of those were not run."""

    total: int
    skipped: int

    def share(self) -> float | None:
        """Share of the tokens' experts that were skipped; None if the layer was not run."""
        return self.skipped / self.total if self.total else None


@dataclass
class Skip:
    """How one layer of a running model skips, and what it has skipped so far, a batch's padding included."""

    beta: float
    renormalizes: bool
    implementation: str
    """Name of transformers' experts function that runs the rest."""
    total: int = 0
    skipped: Tensor | int = 0

    def so_far(self) -> Skipped:
        return Skipped(self.total, int(self.skipped))


@contextmanager
def skip_experts(model: nn.Module, family: MoEFamily, betas: Mapping[int, float]) -> Iterator[dict[int, Skip]]:
    """What each layer named in `betas` has skipped so far: inside the block those layers skip experts.

    What remains of a token's gates is scaled to their former sum where the router renormalizes (Lu's top-1 of a
    Mixtral then has gate 1), and is left as it is where it does not.
    """
    skips: dict[int, Skip] = {}
    before = []
    layers = layers_of(model, family)
    for index, beta in betas.items():
        layer = layers[index]
        before.append((layer.experts, layer.experts.config, layer.experts._is_expert_parallel))
        skips[index] = Skip(beta, layer.renormalizes, layer.experts.config._experts_implementation)
        layer.experts.skip = skips[index]
        # Makes transformers leave out slots numbered beyond the last expert, as those that another device holds.
        layer.experts._is_expert_parallel = True
        # A copy: the layers of a loaded model share one config.
        layer.experts.config = copy(layer.experts.config)
        layer.experts.config._experts_implementation = "skipping"
    try:
        yield skips
    finally:
        for experts, config, parallel in before:
            experts.config = config
            experts._is_expert_parallel = parallel
            del experts.skip


def _skipping_experts(experts: Any, hidden_TD: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> Tensor:
    """The experts forward that would have run without skipping, on the slots that are kept."""
    skip: Skip = experts.skip
    kept = kept_TK(topk_weight_TK, skip.beta)
    skip.total += kept.numel()
    skip.skipped = skip.skipped + (~kept).sum()
    weight_TK = topk_weight_TK * kept
    if skip.renormalizes:
        scale_T1 = topk_weight_TK.float().sum(1, keepdim=True) / weight_TK.float().sum(1, keepdim=True)
        weight_TK = (weight_TK * scale_T1).to(topk_weight_TK.dtype)
    run = ALL_EXPERTS_FUNCTIONS.get_interface(skip.implementation, unwrap(type(experts).forward))
    output_TD: Tensor = run(experts, hidden_TD, topk_index_TK.masked_fill(~kept, experts.num_experts), weight_TK)
    return output_TD


ALL_EXPERTS_FUNCTIONS.register("skipping", _skipping_experts)
