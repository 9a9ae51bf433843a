"""MoE-Pruner: Wanda with each token weighted by the router (arXiv 2410.12013)."""

from typing import TYPE_CHECKING

from stun_exp.unstructured_pruner.wanda import Wanda

if TYPE_CHECKING:
    from stun_exp.unstructured_pruner.masks import SquaredNorm


class MoEPruner(Wanda):
    """|W_ij| ||x_j gate||_2 over the tokens routed to the expert, each times the router's weight for it.

    The gate is the one the model multiplies the expert's output with; the paper's, a softmax of the top-k logits, is
    that of Mixtral. Matrices outside of experts have no gate and are scored as by Wanda; the paper prunes experts
    alone, which is `attention=false` on a model without shared experts. No code was published.
    """

    def statistic(self, num_inputs: int) -> "SquaredNorm":
        from stun_exp.unstructured_pruner.masks import SquaredNorm

        return SquaredNorm(num_inputs, gated=True)
