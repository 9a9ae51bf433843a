"""OWL: what has more outliers keeps more weights (arXiv 2310.05175)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from stun_exp.allocation.protocol import Allotment, Saliencies

LEAST = 0.01
"""What the published code sets where its rule gives nothing, or less, to prune."""


class OWL(Component):
    """Ratios spread over a width of 2 lambda by the outlier ratios of the units.

    Under an N:M pattern the ratios are rounded to n of m by whoever prunes. The published code spreads n itself there,
    by lambda and not by twice lambda: its lambda of 2 for 5:8 is `lamda` = 2 / (2 x 8) = 0.125 here.
    """

    measures: ClassVar[bool] = True
    lamda: float = Field(ge=0, lt=0.5)
    """Half the width of the spread."""
    outlier_multiple: float = Field(gt=0)
    """M: a weight is an outlier if its saliency exceeds M times its layer's mean."""
    per: Literal["layer", "expert"]
    """What gets a ratio of its own: each layer, or each expert and, together, the rest of its layer."""
    pool: Literal["reached", "all"]
    """The weights among which outliers are counted: `reached` leaves starved experts out; in `all`, the published
    code's, their saliency is zero, so that they lower the mean and the percentage."""
    center: Literal["parameters", "layers"]
    """The spread's mean is the asked ratio: weighted by parameters, and what a unit cannot take is spent on the others;
    or, as in the published code, unweighted, which misses the total where units differ in size or cannot take theirs.
    """

    @property
    def per_expert(self) -> bool:
        return self.per == "expert"

    @property
    def exact(self) -> bool:
        return self.center == "parameters"

    @property
    def pools_starved(self) -> bool:
        return self.pool == "all"

    def measure(self, saliencies: "Saliencies") -> list[float]:
        """Percentage of outliers in each unit; an outlier exceeds M times the mean of the whole layer."""
        import torch

        total = sum(float(saliency.sum(dtype=torch.float64)) for unit in saliencies for saliency in unit())
        counts = [sum(saliency.numel() for saliency in unit()) for unit in saliencies]
        threshold = self.outlier_multiple * total / sum(counts)
        outliers = [sum(int((saliency > threshold).sum()) for saliency in unit()) for unit in saliencies]
        return [100 * number / count for number, count in zip(outliers, counts, strict=True)]

    def allocate(self, measured: Sequence[float], sizes: Sequence[int], ratio: float) -> "Allotment":
        from stun_exp.allocation.protocol import Allotment

        low, width = min(measured), max(measured) - min(measured)
        offsets = [-(value - low) / width * 2 * self.lamda if width else 0.0 for value in measured]
        shares = sizes if self.exact else [1] * len(sizes)
        mean = sum(offset * n for offset, n in zip(offsets, shares, strict=True)) / sum(shares)
        asked = [ratio + offset - mean for offset in offsets]
        if self.exact:
            given = _centered(offsets, sizes, ratio)
        else:
            given = [min(value, 1.0) if value > 0 else LEAST for value in asked]
        return Allotment(
            given,
            {
                unit: f"allocation.lamda={self.lamda:g} asks {value:.4f} of the weights, and {got:.4f} is set"
                for unit, (value, got) in enumerate(zip(asked, given, strict=True))
                # The difference: not what rounding of floats alone puts below 0 or above 1.
                if not 0 < value < 1 and abs(value - got) > 1e-9
            },
        )


def _centered(offsets: Sequence[float], sizes: Sequence[int], mean: float) -> list[float]:
    """offsets + c, clipped to [0, 1], with c such that the mean weighted by `sizes` is `mean`."""
    low, high = -max(offsets), 1 - min(offsets)
    for _ in range(100):
        center = (low + high) / 2
        values = [min(max(center + offset, 0.0), 1.0) for offset in offsets]
        if sum(v * n for v, n in zip(values, sizes, strict=True)) < mean * sum(sizes):
            low = center
        else:
            high = center
    return values
