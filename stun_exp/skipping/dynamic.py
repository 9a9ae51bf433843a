"""Skip a token's weaker experts when its gates say that they hardly count (Lu et al., arXiv 2402.14800)."""

from typing import TYPE_CHECKING, ClassVar

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.skip import GateRatios


class DynamicSkipping(Component):
    """Keeps a token's first i experts, the fewest with tail < beta head.

    The gates are w_1 >= ... >= w_k, head = w_1 + ... + w_i, tail = w_{i+1} + ... + w_k. For k = 2 this is Lu's rule:
    the second expert is skipped if w_2 < beta w_1. Their A.2 states the general one as tail <= b total, with b = H/D an
    allowed loss over a typical distance between experts. As total = head + tail, that is tail <= b / (1 - b) head: our
    beta is b / (1 - b), which for k = 2 is their H / (D - H). At the threshold itself an expert is kept, as for k = 2.
    """

    skips: ClassVar[bool] = True

    def statistic(self, layer: "ExpertSource") -> "GateRatios | None":
        from stun_exp.moe.skip import GateRatios

        if layer.top_k == 1:
            raise ValueError(
                f"skipping=dynamic: the router of layer {layer.index} chooses one expert a token (top_k=1), so there "
                "is none to skip; pass skipping=none"
            )
        return GateRatios()

    def beta(self, ratios: "GateRatios") -> float:
        """The median over tokens of w_k / (w_1 + ... + w_{k-1}): half of the tokens skip at least one expert."""
        import numpy as np

        return float(np.median(ratios.ratio_TI()[:, -1].numpy()))
