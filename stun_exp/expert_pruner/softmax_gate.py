"""Expert activity under another gate than the model's.

Shapes: T tokens, E experts, K experts a token, N tokens of one expert, D hidden size.
"""

from typing import Any

from torch import Tensor

from stun_exp.moe.statistics import ExpertActivity


class SoftmaxActivity(ExpertActivity):
    """Each expert's activity with the softmax over all experts' router logits as its gate."""

    def __init__(self, num_experts: int):
        super().__init__(num_experts)
        self._gates: list[Tensor] = []
        """Of a batch that is being run: for each expert the gates of its tokens that it has not seen yet."""

    def routing(self, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> None:
        gate_TE = router_logits_TE.float().softmax(dim=1)
        chosen = ((topk_index_TK == expert).any(dim=1) for expert in range(len(self.count_E)))
        self._gates = [gate_TE[chosen_T, expert] for expert, chosen_T in enumerate(chosen)]

    def expert(self, expert: int, x_ND: Tensor, h_NF: Tensor, y_ND: Tensor, weight_N: Tensor) -> None:
        # An expert's tokens come in their order, all at once or in portions.
        gate_N, self._gates[expert] = self._gates[expert].tensor_split([len(y_ND)])
        super().expert(expert, x_ND, h_NF, y_ND, gate_N)

    def state(self) -> dict[str, Any]:
        return {name: value for name, value in super().state().items() if name != "_gates"}
