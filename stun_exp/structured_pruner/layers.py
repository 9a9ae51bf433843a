"""Whole layers, by how little they change the hidden states that run through them.

Shapes: B sequences of a batch, T tokens, D hidden size, N sequences of all batches.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from stun_exp.structured_pruner.protocol import Cuts, WithRatio

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.moe.layers import MoELayer
    from stun_exp.moe.observe import Statistic


class _Finding(NamedTuple):
    layer: int
    influence: float
    before_ND: "Tensor"
    after_ND: "Tensor"


class Layers(WithRatio):
    """Removes the layers that matter least: single ones, or a block of neighbors.

    `influence` is ShortGPT's (arXiv 2403.03853): 1 - E cos(h_l, h_l+1) over all tokens, and the layers with the lowest
    go. `angle` is that of Gromov et al. (arXiv 2403.17887, PruneMe): the angle between what enters and what leaves a
    block of neighbors, at the last token of each sequence, over pi; the block with the smallest goes.
    """

    by: Literal["influence", "angle"]

    def check(self, outlines: "Sequence[MoELayer]", multiple: int) -> None:
        experts = next((layer.index for layer in outlines if layer.is_moe), None)
        if experts is not None:
            raise ValueError(
                f"structured_pruner=layers: layer {experts} has experts; whole layers go from dense models alone, pass "
                "structured_pruner=none and an expert_pruner"
            )
        if self._number(len(outlines)) >= len(outlines):
            raise ValueError(
                f"structured_pruner.ratio={self.ratio:g} would take all of the {len(outlines)} layers; lower it"
            )

    def expected_share(self, outlines: "Sequence[MoELayer]") -> float:
        return self._number(len(outlines)) / len(outlines)

    def statistics(self, layer: "MoELayer") -> "list[Statistic]":
        from stun_exp.moe.statistics import HiddenStates

        return [HiddenStates()]

    def examine(self, layer: "MoELayer", statistics: "list[Statistic]") -> Any:
        from stun_exp.moe.observe import one
        from stun_exp.moe.statistics import HiddenStates

        seen = one(HiddenStates, statistics)
        return _Finding(layer.index, seen.influence(), *seen.last_tokens())

    def plan(self, findings: list[Any]) -> Cuts:
        from stun_exp.moe.coupled import LayerCut

        number = self._number(len(findings))
        if self.by == "influence":
            scores = {finding.layer: finding.influence for finding in findings}
            gone = sorted(scores, key=lambda layer: (scores[layer], layer))[:number]
        else:
            angles = {start: _angle(findings, start, number) for start in range(len(findings) - number + 1)}
            first = min(angles, key=lambda start: (angles[start], start))
            scores, gone = angles, list(range(first, first + number))
        warnings = []
        if self.ratio * len(findings) < 0.5:
            warnings.append(
                f"structured_pruner.ratio={self.ratio:g} is less than half a layer; one of the {len(findings)} goes "
                f"all the same, {1 / len(findings):.3f} of their weights"
            )
        return Cuts(
            [LayerCut(finding.layer, dropped=finding.layer in gone) for finding in findings],
            warnings,
            {"by": self.by, "removed_layers": sorted(gone), "scores": {str(at): s for at, s in scores.items()}},
        )

    def _number(self, layers: int) -> int:
        """How many of so many layers come nearest to the share that is asked; one at least."""
        return max(1, round(self.ratio * layers))


def _angle(findings: Sequence[_Finding], start: int, number: int) -> float:
    """The mean angle, as a share of pi, between what comes into a block and what leaves it."""
    from torch import pi
    from torch.nn.functional import cosine_similarity

    before_ND, after_ND = findings[start].before_ND, findings[start + number - 1].after_ND
    cosine_N = cosine_similarity(before_ND, after_ND, dim=-1).clamp(-1, 1)
    return float((cosine_N.arccos() / pi).mean())
