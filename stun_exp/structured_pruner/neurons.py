"""Hidden units of the feed-forward and groups of attention heads, scored on the inputs of the matrices that read them.

Shapes: C inputs of `down_proj` or of the heads' output projection, O its outputs.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from stun_exp.structured_pruner.protocol import Cuts, WithHeads

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.moe.coupled import Sizes
    from stun_exp.moe.inputs import InputStatistics
    from stun_exp.moe.layers import MoELayer
    from stun_exp.moe.observe import Statistic
    from stun_exp.structured_pruner.moments import Moments


class _Finding(NamedTuple):
    layer: int
    sizes: "Sizes"
    weights: int
    """Of all matrices of the layer."""
    unit_scores: "Tensor"
    group_scores: "Tensor | None"
    unit_parts: "Tensor | None"
    """What each hidden unit gives in the mean, (units, outputs), where that is put into a bias."""
    group_parts: "Tensor | None"
    down: str
    out: str | None


class Neurons(WithHeads):
    """FLAP (arXiv 2312.11983), Wanda-sp, or the magnitude of the weights.

    `fluctuation` is Var(x_j) ||W_:j||^2 (FLAP's WIFV; squared for attention), in standard deviations of the layer;
    `wanda` the mean over rows of |W_ij| ||x_j||, and `magnitude` the norm of the column W_:j, both over the layer's
    mean. A group of heads, all that share keys and values, has the mean of its columns.
    """

    score: Literal["fluctuation", "wanda", "magnitude"]
    budget: Literal["global", "per_layer"]
    """One threshold for the whole model, heads and units alike, by what each weighs; or equally many of each layer,
    which stock transformers can load."""
    compensate: bool
    """Whether a bias stands in for the mean of what went, where the architecture can hold one."""
    official: bool
    """The variance of FLAP's code: its buffer for the old mean is the new one's, and its first sequence is dropped."""
    multiple_of: int = Field(ge=1)
    """What the number of hidden units that stay is a multiple of."""

    def has_equal_layers(self) -> bool:
        return self.budget == "per_layer"

    def single_sequences(self) -> bool:
        return self.official

    def check(self, outlines: "Sequence[MoELayer]", multiple: int) -> None:
        sizes = self.sizes(outlines)
        if multiple > 1 and self.multiple_of % multiple:
            raise ValueError(
                f"structured_pruner.multiple_of={self.multiple_of}: the unstructured_pruner's pattern wants rows of a "
                f"multiple of {multiple}; pass structured_pruner.multiple_of={multiple}"
            )
        narrowest = min(one.units for one in sizes)
        if narrowest < self.multiple_of:
            raise ValueError(
                f"structured_pruner.multiple_of={self.multiple_of}: there are layers of {narrowest} hidden units, less "
                "than one such multiple; lower it"
            )
        self.check_ratio(outlines, sizes, self.multiple_of)

    def statistics(self, layer: "MoELayer") -> "list[Statistic]":
        from stun_exp.moe.inputs import InputStatistics
        from stun_exp.structured_pruner.moments import Moments

        if self.score == "magnitude" and not self.compensate:
            return []
        read = self._read(layer)
        matrices = [matrix for matrix in layer.matrices() if matrix.name in read]
        return [InputStatistics(layer, matrices, lambda width: Moments(width, self.official))]

    def examine(self, layer: "MoELayer", statistics: "list[Statistic]") -> Any:
        from stun_exp.moe.coupled import coupled_of, out_columns, sizes_of

        coupled, sizes = coupled_of(layer), sizes_of(layer)
        seen: InputStatistics[Moments] | None = statistics[0] if statistics else None  # type: ignore[assignment]
        matrices = {matrix.name: matrix.weight_OC for matrix in layer.matrices()}
        weights = sum(weight.numel() for weight in matrices.values())

        def of(path: str) -> "tuple[Tensor, Tensor | None]":
            """The scores of a matrix' columns, and what each gives in the mean, (columns, outputs)."""
            moments = seen.by_feed[path] if seen is not None else None
            parts = None
            if self.compensate and moments is not None and _can_hold_bias(layer, path):
                parts = (matrices[path].float() * moments.mean_C().to(matrices[path].device)).mT
            return self._scores(matrices[path], moments), parts

        unit_scores, unit_parts = of(coupled.down)
        if not self.heads or coupled.heads is None:
            units = self._normalized(unit_scores)
            return _Finding(layer.index, sizes, weights, units, None, unit_parts, None, coupled.down, None)
        columns, parts = of(coupled.heads[3])
        if self.score == "fluctuation":
            columns = self._normalized(columns.square())
        size = len(out_columns(layer, [0]))
        group_scores = columns.reshape(-1, size).mean(1)
        group_parts = parts.reshape(-1, size, parts.shape[1]).sum(1) if parts is not None else None
        scores = (self._normalized(unit_scores), group_scores)
        return _Finding(layer.index, sizes, weights, *scores, unit_parts, group_parts, coupled.down, coupled.heads[3])

    def plan(self, findings: list[Any]) -> Cuts:
        kept = self._by_layer(findings) if self.budget == "per_layer" else self._by_threshold(findings)
        cuts = [self._cut(finding, *own) for finding, own in zip(findings, kept, strict=True)]
        warnings = []
        unheld = [f.layer for f in findings if self.compensate and (f.unit_parts is None)]
        if unheld:
            warnings.append(
                f"structured_pruner.compensate=true: feed-forwards of this architecture hold no bias, so that nothing "
                f"stands in for the mean of the hidden units that go ({len(unheld)} layers)"
            )
        if self.compensate and any(f.group_scores is not None and f.group_parts is None for f in findings):
            warnings.append(
                "structured_pruner.compensate=true: attention of this architecture holds no bias at its output, so "
                "that nothing stands in for the mean of the heads that go"
            )
        return Cuts(cuts, warnings, {"score": self.score, "budget": self.budget})

    def _cut(self, finding: _Finding, units: list[int], groups: list[int] | None) -> Any:
        from stun_exp.moe.coupled import LayerCut

        return LayerCut(finding.layer, units, groups, biases=self._biases(finding, units, groups))

    def _biases(self, finding: _Finding, units: list[int], groups: list[int] | None) -> "dict[str, Tensor]":
        """By the linear that read them, what the parts that go gave in the mean."""
        biases = {}
        for path, parts, kept in (
            (finding.down, finding.unit_parts, units),
            (finding.out, finding.group_parts, groups),
        ):
            if path is not None and parts is not None and kept is not None and len(kept) < len(parts):
                gone = sorted(set(range(len(parts))) - set(kept))
                biases[path] = parts[gone].sum(0)
        return biases

    def _read(self, layer: "MoELayer") -> set[str]:
        """The matrices whose inputs are looked at."""
        from stun_exp.moe.coupled import coupled_of

        coupled = coupled_of(layer)
        return {coupled.down} | ({coupled.heads[3]} if self.heads and coupled.heads is not None else set())

    def _scores(self, weight_OC: "Tensor", moments: "Moments | None") -> "Tensor":
        weight_OC = weight_OC.float()
        if self.score == "magnitude":
            norm_C: Tensor = weight_OC.norm(dim=0)
            return norm_C
        assert moments is not None
        if self.score == "wanda":
            return weight_OC.abs().mean(0) * moments.norm_C().to(weight_OC.device)
        return moments.variance_C().to(weight_OC.device) * weight_OC.square().sum(0)

    def _normalized(self, scores: "Tensor") -> "Tensor":
        """Made comparable between layers, as FLAP does; the order within a layer stays."""
        if self.score != "fluctuation":
            return scores / scores.mean()
        return (scores - scores.mean()) / scores.std()

    def _equal_share(self, sizes: "Sizes", weights: int) -> tuple[int, int | None]:
        """(Hidden units, groups of heads) that stay of a layer that loses its share."""
        groups = None
        gone = self.ratio * weights
        if self.heads and sizes.groups:
            groups = sizes.groups - min(round(self.ratio * sizes.groups), sizes.groups - 1)
            gone -= (sizes.groups - groups) * sizes.group_weights
        units = sizes.units - round(gone / sizes.unit_weights)
        return self._rounded(units, sizes.units), groups

    def _rounded(self, units: int, most: int) -> int:
        """The multiple that is nearest to so many hidden units."""
        return self.multiple_of * min(max(1, round(units / self.multiple_of)), most // self.multiple_of)

    def _by_layer(self, findings: Sequence[_Finding]) -> list[tuple[list[int], list[int] | None]]:
        kept = []
        for finding in findings:
            units, groups = self._equal_share(finding.sizes, finding.weights)
            best = None if groups is None or finding.group_scores is None else _best(finding.group_scores, groups)
            kept.append((_best(finding.unit_scores, units), best))
        return kept

    def _by_threshold(self, findings: Sequence[_Finding]) -> list[tuple[list[int], list[int] | None]]:
        """What stays if the parts with the lowest scores go, of the whole model, until their weights are the share."""
        wanted = self.ratio * sum(finding.weights for finding in findings)
        parts = []
        for place, finding in enumerate(findings):
            for kind, scores, weights in (
                ("unit", finding.unit_scores, finding.sizes.unit_weights),
                ("group", finding.group_scores, finding.sizes.group_weights),
            ):
                if scores is not None:
                    parts += [(score, place, kind, at, weights) for at, score in enumerate(scores.tolist())]
        units = [finding.sizes.units for finding in findings]
        groups = [finding.sizes.groups for finding in findings]
        gone: list[dict[str, set[int]]] = [{"unit": set(), "group": set()} for _ in findings]
        taken = 0
        for _, place, kind, at, weights in sorted(parts):
            left = units if kind == "unit" else groups
            # What overshoots by more than it would miss stays; so does the last of a kind in a layer.
            if left[place] == (self.multiple_of if kind == "unit" else 1) or taken + weights / 2 > wanted:
                continue
            left[place] -= 1
            gone[place][kind].add(at)
            taken += weights
        kept = []
        for finding, own in zip(findings, gone, strict=True):
            stay = self._rounded(finding.sizes.units - len(own["unit"]), finding.sizes.units)
            best = sorted(set(range(finding.sizes.groups)) - own["group"]) if finding.group_scores is not None else None
            kept.append((_best(finding.unit_scores, stay), best))
        return kept


def _best(scores: "Tensor", number: int) -> list[int]:
    """The places of the highest scores, in their order; the first of equal ones."""
    return sorted(scores.argsort(descending=True, stable=True)[:number].tolist())


def _can_hold_bias(layer: "MoELayer", path: str) -> bool:
    from stun_exp.moe.coupled import coupled_of

    return getattr(layer.module.get_submodule(path), "bias", None) is not None or path in coupled_of(layer).biases
