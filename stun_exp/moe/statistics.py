"""What expert pruners want to know of a layer, gathered in one pass over the calibration tokens.

Shapes: B sequences, T tokens, E experts, K experts a token, N tokens of one expert, D hidden size, G domains.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stun_exp.moe.observe import Statistic


class Coactivation(Statistic):
    """Number of tokens whose top-k holds both experts of a pair: symmetric (E, E), zero
    diagonal (STUN, 2409.06211, Eq. 7)."""

    def __init__(self, num_experts: int):
        self.count_EE = torch.zeros(num_experts, num_experts, dtype=torch.float64)

    def routing(self, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> None:
        # The last column is for places that are nobody's: of tokens over an expert's capacity.
        chosen_TE = torch.zeros(len(topk_index_TK), len(self.count_EE) + 1, device=topk_index_TK.device)
        chosen_TE = chosen_TE.scatter_(1, topk_index_TK, 1.0)[:, :-1]
        # fp32 counts tokens of one batch exactly (below 2**24); the total is kept in fp64.
        self.count_EE += (chosen_TE.T @ chosen_TE).fill_diagonal_(0).cpu().double()


class ExpertTokens(Statistic):
    """Number of calibration tokens each expert received, (E,)."""

    def __init__(self, num_experts: int):
        self.count_E = torch.zeros(num_experts, dtype=torch.int64)

    def routing(self, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> None:
        num_experts = len(self.count_E)
        self.count_E += torch.bincount(topk_index_TK.flatten().cpu(), minlength=num_experts)[:num_experts]


class ExpertActivity(Statistic):
    """How much each expert is used and how large its outputs are, over the tokens routed to it; all (E,) in fp64."""

    def __init__(self, num_experts: int):
        # Tokens; sum of gates g; sum of output norms ||y||; sum of g ||y||; largest |y| of any token.
        self.count_E, self.gate_E, self.norm_E, self.gated_norm_E, self.max_E = torch.zeros(
            5, num_experts, dtype=torch.float64
        )

    def expert(self, expert: int, x_ND: Tensor, h_NF: Tensor, y_ND: Tensor, weight_N: Tensor) -> None:
        if len(y_ND) == 0:
            return
        norm_N, gate_N = y_ND.float().norm(dim=1).double(), weight_N.double()
        self.count_E[expert] += len(y_ND)
        self.gate_E[expert] += float(gate_N.sum())
        self.norm_E[expert] += float(norm_N.sum())
        self.gated_norm_E[expert] += float(gate_N @ norm_N)
        # Not Python's max, which would lose a NaN.
        self.max_E[expert] = torch.maximum(self.max_E[expert], y_ND.abs().max().double().cpu())

    def reap_E(self) -> Tensor:
        """REAP's saliency, the mean of g ||y|| over an expert's own tokens (arXiv 2510.13999); 0 without a token."""
        reap_E: Tensor = self.gated_norm_E / self.count_E.clamp(min=1)
        return reap_E


class MeanOutputs(Statistic):
    """Mean output of every expert over all tokens, routed to it or not, (E, D) in fp64 (HC-SMoE's representation)."""

    chunk_tokens = 1024

    def __init__(self) -> None:
        self.sum_ED: Tensor | None = None
        self.num_tokens = 0

    def all_experts(
        self, y_ETD: Tensor, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor
    ) -> None:
        sum_ED = y_ETD.sum(1, dtype=torch.float64).cpu()
        self.sum_ED = sum_ED if self.sum_ED is None else self.sum_ED + sum_ED
        self.num_tokens += y_ETD.shape[1]

    def mean_ED(self) -> Tensor:
        assert self.sum_ED is not None
        return self.sum_ED / self.num_tokens


class ExpertUsage(Statistic):
    """What each expert gets and gives over the tokens routed to it: their number and the sum of their gates, (E,), and
    the sum of its outputs, (E, D); all in fp64."""

    def __init__(self, num_experts: int):
        self.count_E, self.gate_E = torch.zeros(2, num_experts, dtype=torch.float64)
        self.output_ED: Tensor | None = None

    def expert(self, expert: int, x_ND: Tensor, h_NF: Tensor, y_ND: Tensor, weight_N: Tensor) -> None:
        self.count_E[expert] += len(y_ND)
        self.gate_E[expert] += float(weight_N.double().sum())
        if self.output_ED is None:
            self.output_ED = torch.zeros(len(self.count_E), y_ND.shape[1], dtype=torch.float64)
        self.output_ED[expert] += y_ND.sum(0, dtype=torch.float64).cpu()


class DomainUsage(Statistic):
    """How often tokens of each domain chose each expert, and the sum of their gates; both (G, E) in fp64."""

    def __init__(self, num_experts: int, num_domains: int, batches: Sequence[Sequence[int]]):
        """`batches` are the domains of the sequences of each batch, in the order in which they are run."""
        self.count_GE, self.gate_GE = torch.zeros(2, num_domains, num_experts, dtype=torch.float64)
        self._batches = list(batches)

    def routing(self, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> None:
        domains = torch.tensor(self._batches.pop(0))
        domain_T = domains.repeat_interleave(len(topk_index_TK) // len(domains))
        num_domains, num_experts = self.count_GE.shape
        # The last column is for places that are nobody's: of tokens over an expert's capacity.
        place_TK = domain_T[:, None] * (num_experts + 1) + topk_index_TK.cpu()
        size = num_domains * (num_experts + 1)
        for total_GE, weight_TK in ((self.count_GE, torch.ones_like(place_TK)), (self.gate_GE, topk_weight_TK.cpu())):
            found = torch.bincount(place_TK.flatten(), weight_TK.flatten().double(), minlength=size)
            total_GE += found.view(num_domains, -1)[:, :-1]


class RoutedOutputs(Statistic):
    """The experts' weighted sum for each batch, (T, D): what a progressive search must still reach."""

    def __init__(self) -> None:
        self.outputs_TD: list[Tensor] = []

    def output(self, y_TD: Tensor) -> None:
        self.outputs_TD.append(y_TD.clone())


class OutputError(Statistic):
    """How far the experts' weighted sums are from those of another layer on the same tokens, which it gives back."""

    def __init__(self, reference: RoutedOutputs):
        self.reference = reference
        self.error_square = 0.0
        self.reference_square = 0.0

    def output(self, y_TD: Tensor) -> None:
        expected_TD = self.reference.outputs_TD.pop(0).float()
        self.error_square += float((y_TD.float() - expected_TD).square().sum(dtype=torch.float64))
        self.reference_square += float(expected_TD.square().sum(dtype=torch.float64))


class RouterLogitGram(Statistic):
    """Inner products of the experts' router logits over all tokens: symmetric (E, E) in fp64."""

    def __init__(self, num_experts: int):
        self.gram_EE = torch.zeros(num_experts, num_experts, dtype=torch.float64)

    def routing(self, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> None:
        logits_TE = router_logits_TE.double()
        self.gram_EE += (logits_TE.T @ logits_TE).cpu()


class HiddenStates(Statistic):
    """How much a layer turns the hidden states, and those of each sequence's last token before and after it."""

    def __init__(self) -> None:
        self.cosines = 0.0
        self.num_tokens = 0
        self.before_BD: list[Tensor] = []
        self.after_BD: list[Tensor] = []

    def layer(self, x_BTD: Tensor, y_BTD: Tensor) -> None:
        # In 64 bits: a layer that changes next to nothing is told from one that changes nothing.
        x_BTD, y_BTD = x_BTD.double(), y_BTD.double()
        self.cosines += float(torch.nn.functional.cosine_similarity(x_BTD, y_BTD, dim=-1).sum())
        self.num_tokens += x_BTD.shape[:2].numel()
        self.before_BD.append(x_BTD[:, -1].float().cpu())
        self.after_BD.append(y_BTD[:, -1].float().cpu())

    def influence(self) -> float:
        """1 - E cos(before, after) over all tokens (ShortGPT's block influence): 0 for a layer that changes nothing."""
        return max(0.0, 1 - self.cosines / max(self.num_tokens, 1))

    def last_tokens(self) -> tuple[Tensor, Tensor]:
        """Of each sequence's last token, before the layer and after it."""
        return torch.cat(self.before_BD), torch.cat(self.after_BD)
