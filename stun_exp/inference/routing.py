"""Which experts the tokens of a batch choose together: what a step of a batch has to read.

Shapes: B sequences, T tokens of each, E experts, K experts a token.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stun_exp.inference.records import ExpertsHit
from stun_exp.moe.families import MoEFamily
from stun_exp.moe.layers import layers_of
from stun_exp.moe.observe import Statistic, observe


class Choices(Statistic):
    """The experts that each token of each sequence chose in one layer; a sequence is a batch of its own."""

    def __init__(self) -> None:
        self._sequences_TK: list[Tensor] = []

    def routing(self, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> None:
        self._sequences_TK.append(topk_index_TK.cpu())

    def chosen_BTE(self, num_experts: int) -> Tensor:
        """Which expert was chosen for which token."""
        index_BTK = torch.stack(self._sequences_TK)
        # A token over an expert's capacity chose nobody, which is numbered `num_experts`.
        chosen = torch.zeros(*index_BTK.shape[:2], num_experts + 1, dtype=torch.bool)
        return chosen.scatter(2, index_BTK, True)[..., :num_experts]


def experts_hit(
    model: PreTrainedModel, family: MoEFamily, prompts_BT: Tensor, batch_sizes: Sequence[int]
) -> list[ExpertsHit]:
    """The distinct experts that batches of the first prompts choose; none of a dense model."""
    layers = [layer for layer in layers_of(model, family) if layer.is_moe]
    if not layers:
        return []
    choices = [Choices() for _ in layers]
    with ExitStack() as stack:
        for layer, choice in zip(layers, choices, strict=True):
            stack.enter_context(observe(layer, [choice]))
        for prompt_T in prompts_BT:  # one by one: the logits of all would be large
            ids_BT = prompt_T[None].to(model.device)
            model(input_ids=ids_BT, **({"decoder_input_ids": ids_BT} if model.config.is_encoder_decoder else {}))
    chosen = [choice.chosen_BTE(layer.num_experts) for layer, choice in zip(layers, choices, strict=True)]
    return [hit_by(chosen, size) for size in batch_sizes]


def hit_by(chosen_BTE: Sequence[Tensor], batch_size: int) -> ExpertsHit:
    """What a batch of the first sequences hits in the layers whose choices these are."""
    together = [layer[:batch_size].any(0) for layer in chosen_BTE]  # (T, E)
    decode = [float(layer.sum(1).float().mean()) for layer in together]
    prefill = [int(layer.any(0).sum()) for layer in together]
    return ExpertsHit(batch_size, sum(decode) / len(decode), sum(prefill) / len(prefill))
