"""LLM-Surgeon (van der Ouderaa et al., ICLR 2024, arXiv 2312.17244): what the loss's curvature says that is cheap goes,
and the weights that stay make up for it.

Shapes: F hidden units, G groups of heads.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stun_exp.structured_pruner.cheapest import Kind, LineCosts, PartCosts, cheapest_lines, cheapest_parts
from stun_exp.structured_pruner.protocol import Cuts, StructuredPruner, WithHeads

if TYPE_CHECKING:
    from stun_exp.moe.coupled import LayerCut
    from stun_exp.moe.layers import MoELayer
    from stun_exp.moe.observe import Statistic
    from stun_exp.structured_pruner.curved import CurvedLinear


class LlmSurgeon(WithHeads):
    """One threshold for the whole model on what the loss is expected to grow by, with K-FAC curvature, in shots.

    The curvature is measured again at each shot: A of a linear's inputs and G of the gradients at its outputs, of the
    text's own next tokens. A row costs 1/2 (W A W^T)_rr / (G^-1)_rr, a column 1/2 (W^T G W)_cc / (A^-1)_cc.

    We differ from the authors' code (llm-surgeon 7267344) in what goes: a hidden unit or a group of heads, out of all
    matrices, and the layer is narrower for it. It costs what its columns do in the matrix that reads it, a group all of
    its columns together, and ranks by this for each weight that goes with it. The other columns of that matrix make up
    for it. The rows that fed it go without more: made up for as well, they were made up for twice.

    With `shrink` off single rows and columns of each matrix become zero and shapes stay, as theirs do. Both are made up
    for jointly; their default sums two updates, each as if the other were not.
    """

    shots: int = Field(ge=1)
    """Each takes an equal share."""
    damping: float = Field(gt=0)
    """Share of the mean diagonal of each factor that is added to it."""
    shrink: bool
    """Whether layers become narrower; else rows and columns become zeros."""

    def expected_share(self, outlines: "Sequence[MoELayer]") -> float:
        return self.ratio if self.shrink else 0.0  # zeros are for the weight stage to count

    def has_equal_layers(self) -> bool:
        return not self.shrink

    def needs_gradients(self) -> bool:
        return True

    def num_shots(self) -> int:
        return self.shots

    def after(self, shot: int, taken: float) -> StructuredPruner:
        share = self.ratio * (shot + 1) / self.shots
        return self.model_copy(update={"ratio": (share - taken) / (1 - taken), "shots": self.shots - shot})

    def check(self, outlines: "Sequence[MoELayer]", multiple: int) -> None:
        sizes = self.sizes(outlines)
        if self.shrink and multiple > 1:
            raise ValueError(
                "structured_pruner=llm_surgeon leaves as many hidden units of a layer as its threshold says, and the "
                f"unstructured_pruner's pattern wants rows of a multiple of {multiple}; pass "
                "structured_pruner.shrink=false, or unstructured_pruner.pattern=unstructured"
            )
        self.check_ratio(outlines, sizes, 1)

    def statistics(self, layer: "MoELayer") -> "list[Statistic]":
        from stun_exp.moe.coupled import coupled_of
        from stun_exp.structured_pruner.curvature import Kfac

        coupled = coupled_of(layer)
        feeds = {coupled.down: coupled.down}
        if self.heads and coupled.heads is not None:
            feeds[coupled.heads[3]] = coupled.heads[3]
        if not self.shrink:
            feeds |= dict.fromkeys(coupled.ups, coupled.ups[0])
            if self.heads and coupled.heads is not None:
                feeds |= dict.fromkeys(coupled.heads[:3], coupled.heads[0])
        return [Kfac(feeds)]

    def examine(self, layer: "MoELayer", statistics: "list[Statistic]") -> Any:
        from stun_exp.moe.coupled import coupled_of, sizes_of

        linears = self._linears(layer, statistics)
        weights = sum(matrix.weight_OC.numel() for matrix in layer.matrices())
        if not self.shrink:
            rows = {path: linear.row_costs().cpu() for path, linear in linears.items()}
            columns = {path: linear.column_costs().cpu() for path, linear in linears.items()}
            return LineCosts(layer.index, weights, rows, columns)
        coupled, sizes = coupled_of(layer), sizes_of(layer)
        units_F, groups_G = linears[coupled.down].part_costs(sizes.units).cpu(), None
        if self.heads and coupled.heads is not None:
            groups_G = linears[coupled.heads[3]].part_costs(sizes.groups).cpu()
        return PartCosts(layer.index, sizes, weights, units_F, groups_G)

    def plan(self, findings: list[Any]) -> Cuts:
        from stun_exp.moe.coupled import LayerCut

        wanted = self.ratio * sum(found.weights for found in findings)
        if not self.shrink:
            lines, threshold, taken = cheapest_lines(findings, wanted)
            cuts = [LayerCut(found.layer, zeros=own) for found, own in zip(findings, lines, strict=True)]
            return Cuts(cuts, (), {"threshold": threshold, "zeros": taken})
        chosen, threshold = cheapest_parts(findings, wanted, fills=self.shots == 1)
        cuts = [_cut(found, gone) for found, gone in zip(findings, chosen, strict=True)]
        return Cuts(cuts, (), {"threshold": threshold})

    def adjust_(self, layer: "MoELayer", cut: "LayerCut", statistics: "list[Statistic]") -> None:
        from stun_exp.moe.coupled import lost_lines

        lost = lost_lines(layer, cut)
        for path, linear in self._linears(layer, statistics).items():
            if path in lost:
                linear.remove_(lost[path].rows or (), lost[path].columns or ())

    def _linears(self, layer: "MoELayer", statistics: "list[Statistic]") -> "dict[str, CurvedLinear]":
        from stun_exp.structured_pruner.curved import curved_of

        return curved_of(layer, statistics, self.damping, zeros_stay=not self.shrink)


def _cut(found: PartCosts, gone: Mapping[Kind, Sequence[int]]) -> "LayerCut":
    from stun_exp.moe.coupled import LayerCut

    units = sorted(set(range(found.sizes.units)) - set(gone["units"]))
    groups = sorted(set(range(found.sizes.groups)) - set(gone["groups"]))
    return LayerCut(found.layer, units, None if found.groups is None else groups)
