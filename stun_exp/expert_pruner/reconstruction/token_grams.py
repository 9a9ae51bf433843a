"""Everything that the reconstruction loss of any subset of a layer's experts depends on, token by token.

Lu et al. (arXiv 2402.14800) choose the experts C that minimize ||F'(x; C) - F(x)||_F, the change of the layer's routed
output. A token's squared error is a quadratic form in its gates: with y_i the output of expert i, g the gates after
pruning and t the target, ||sum_i g_i y_i - t||^2 needs inner products alone. So each expert runs once on each token,
one Gram matrix a token is kept, and no subset needs a forward pass.

Shapes: T tokens of a chunk, E experts, K experts a token (top-k), R ranks kept, D hidden size. Rank r of a token is its
expert with the r-th highest router logit, the chosen ones first. After m experts are gone, a token's new top-k lies
within its first R = K + m ranks: the Gram matrix has those rows alone.
"""

import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stun_exp.moe.observe import Statistic


@dataclass(frozen=True)
class TokenChunk:
    """Some tokens of one batch."""

    batch: int
    order_TE: Tensor
    """Experts by rank."""
    value_TE: Tensor
    """exp(router logit), by rank, up to a factor for each token, fp64."""
    gram_TXX: Tensor
    """Inner products of the outputs at the first R ranks and, last, of what the target has beyond the full layer's."""
    top_k: int
    renormalizes: bool

    @property
    def num_ranks(self) -> int:
        return self.gram_TXX.shape[1] - 1

    def scale_T(self, ranks_TK: Tensor, left_T: Tensor) -> Tensor:
        """What turns values into gates: 1 over the sum of the chosen ones, or of all that are left."""
        return 1 / (self.value_TE.gather(1, ranks_TK).sum(1) if self.renormalizes else left_T)

    def terms_T(self, ranks_TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """||a||^2, <a, t>, ||t||^2 with a the outputs at the given ranks weighted by their values and t the target.

        A token's squared error is then s^2 ||a||^2 - 2 s <a, t> + ||t||^2, with s its `scale_T`.
        """
        top_k = self.top_k
        first_TK = torch.arange(top_k).expand(len(ranks_TK), -1)
        value_TK = self.value_TE.gather(1, ranks_TK)
        # The target is the full layer's output plus the last row of the Gram matrix.
        target_TX = self.value_TE.new_ones(len(ranks_TK), top_k + 1)
        scale_T = self.scale_T(first_TK, self.value_TE.sum(1))
        target_TX[:, :top_k] = self.value_TE[:, :top_k] * scale_T[:, None]
        last_T1 = torch.full((len(ranks_TK), 1), self.num_ranks)
        at_TX = torch.cat([first_TK, last_T1], 1)
        aa_T = _form(self._block(ranks_TK, ranks_TK), value_TK, value_TK)
        at_T = _form(self._block(ranks_TK, at_TX), value_TK, target_TX)
        tt_T = _form(self._block(at_TX, at_TX), target_TX, target_TX)
        return aa_T, at_T, tt_T

    def errors_T(self, ranks_TK: Tensor, left_T: Tensor) -> Tensor:
        """Squared error of each token if it is served by the experts at these ranks.

        `left_T` is the sum of the values of all experts that are left.
        """
        return squared_error(self.scale_T(ranks_TK, left_T), *self.terms_T(ranks_TK))

    def _block(self, rows_TA: Tensor, columns_TB: Tensor) -> Tensor:
        size = self.gram_TXX.shape[1]
        places = rows_TA[:, :, None] * size + columns_TB[:, None, :]
        block = self.gram_TXX.flatten(1).gather(1, places.flatten(1))
        return block.view(places.shape).double()


def squared_error(scale: Tensor, aa: Tensor, at: Tensor, tt: Tensor) -> Tensor:
    """||s a - t||^2, by its terms."""
    return (scale * scale * aa - 2 * scale * at + tt).clamp(min=0)


class TokenGrams(Statistic):
    """Gathers `TokenChunk`s; the Gram matrices lie in a temporary file, so that memory is bounded by a chunk.

    A chunk of T tokens takes 4 T (E D + R D + (R + 1)^2) bytes; the file, 4 (R + 1)^2 for each calibration token.
    """

    def __init__(self, num_experts: int, top_k: int, max_removed: int, renormalizes: bool, chunk_tokens: int):
        self.num_ranks = min(top_k + max_removed, num_experts)
        self.top_k = top_k
        self.renormalizes = renormalizes
        self.chunk_tokens = chunk_tokens
        self.num_batches = 0
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 -- it outlives this call
        self.close = weakref.finalize(self, self.file.close)
        """Gives the disk space back."""
        self._targets_TD: Sequence[Tensor] | None = None
        self._seen = 0
        self._small: list[tuple[int, Tensor, Tensor]] = []

    def reach(self, outputs_TD: Sequence[Tensor]) -> None:
        self._targets_TD = outputs_TD

    def routing(self, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> None:
        self.num_batches += 1
        self._seen = 0

    def all_experts(
        self, y_ETD: Tensor, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor
    ) -> None:
        order_TE, logits_TE = self._ranked(router_logits_TE, topk_index_TK, topk_weight_TK)
        ranks_TR = order_TE[:, : self.num_ranks]
        tokens_T1 = torch.arange(len(ranks_TR), device=y_ETD.device)[:, None]
        y_TRD = y_ETD[ranks_TR, tokens_T1].float()
        gap_TD = torch.zeros_like(y_TRD[:, 0])
        if self._targets_TD is not None:
            here = torch.einsum("tk,tkd->td", topk_weight_TK.float(), y_ETD[topk_index_TK, tokens_T1].float())
            gap_TD = self._targets_TD[self.num_batches - 1][self._seen : self._seen + len(here)] - here
        self._seen += len(ranks_TR)
        y_TXD = torch.cat([y_TRD, gap_TD[:, None]], 1)
        self.file.write((y_TXD @ y_TXD.mT).cpu().numpy().tobytes())
        self._small.append((self.num_batches - 1, order_TE.to("cpu", torch.int16), logits_TE.cpu()))

    def state(self) -> dict[str, Any]:
        self.file.flush()
        size = self.file.tell()
        grams = torch.from_numpy(np.memmap(self.file, dtype=np.uint8, mode="r+", shape=(size,)))
        return {"num_batches": self.num_batches, "small": self._small, "grams": grams}

    def restore_(self, state: dict[str, Any]) -> None:
        self.num_batches, self._small = state["num_batches"], state["small"]
        self.file.write(state["grams"].numpy().tobytes())

    def chunks(self) -> Iterator[TokenChunk]:
        """All tokens, in order."""
        size = self.num_ranks + 1
        self.file.flush()
        start = 0
        for batch, order_TE, logits_TE in self._small:
            shape = (len(order_TE), size, size)
            gram = np.memmap(self.file, dtype=np.float32, mode="r+", offset=start, shape=shape)
            start += gram.nbytes
            value_TE = logits_TE.double().exp()
            yield TokenChunk(batch, order_TE.long(), value_TE, torch.from_numpy(gram), self.top_k, self.renormalizes)

    def _ranked(self, logits_TE: Tensor, chosen_TK: Tensor, weight_TK: Tensor) -> tuple[Tensor, Tensor]:
        """Experts by rank, and their logits below the highest; ValueError if the gates are not a softmax of these."""
        if bool((chosen_TK == logits_TE.shape[1]).any()):
            raise ValueError(
                "some tokens are over the capacity of their experts, and which ones depends on the experts that are "
                "left, which a reconstruction search cannot know; choose an expert pruner that uses no reconstruction "
                "loss, such as expert_pruner=reap, or shorter sequences (calibration.sequence_length)"
            )
        logits_TE = logits_TE.float()
        # The chosen experts come first even where 16-bit logits tie: the router broke the tie its own way.
        key_TE = logits_TE.scatter(1, chosen_TK, torch.inf)
        rest_TE = key_TE.argsort(dim=1, descending=True, stable=True)[:, self.top_k :]
        by_weight = weight_TK.argsort(dim=1, descending=True, stable=True)
        order_TE = torch.cat([chosen_TK.gather(1, by_weight), rest_TE], 1)
        logits_TE = (logits_TE - logits_TE.amax(1, keepdim=True)).gather(1, order_TE)
        first_TK, rest_TE = logits_TE[:, : self.top_k], logits_TE[:, self.top_k :]
        # A router may add a bias to its choice and none to its gates: whom it would choose next, logits do not say.
        if rest_TE.shape[1] and bool((rest_TE.amax(1) > first_TK.amin(1) + 1e-3).any()):
            raise ValueError(
                "this model's router does not choose the experts with the highest logits (it has biases for the "
                "choice), which a reconstruction search assumes; choose an expert pruner that uses no reconstruction "
                "loss, such as expert_pruner=reap"
            )
        gate_TK = first_TK.softmax(1) if self.renormalizes else logits_TE.softmax(1)[:, : self.top_k]
        if not torch.allclose(gate_TK, weight_TK.gather(1, by_weight).float(), rtol=0.02, atol=1e-3):
            raise ValueError(
                "this model's gates are not the softmax of its router logits, which a reconstruction search computes "
                "subsets with; choose an expert pruner that uses no reconstruction loss, such as expert_pruner=reap"
            )
        return order_TE, logits_TE


def _form(block_TAB: Tensor, left_TA: Tensor, right_TB: Tensor) -> Tensor:
    return torch.einsum("tab,ta,tb->t", block_TAB, left_TA, right_TB)
