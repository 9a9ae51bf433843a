"""OWL: layers with more outliers keep more weights (arXiv 2310.05175)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from stun_exp.component import Component

if TYPE_CHECKING:
    from stun_exp.allocation.protocol import Saliencies


class OWL(Component):
    """Layer ratios spread over a width of 2 lambda by the layers' outlier ratios.

    The official code centres the spread on the unweighted mean over layers, so layers of different sizes miss the
    asked total; here the mean is weighted by parameters. What a layer cannot take is spent on the others.
    """

    measures: ClassVar[bool] = True
    lamda: float = Field(ge=0, lt=0.5)
    """Half the width of the spread."""
    outlier_multiple: float = Field(gt=0)
    """M: a weight is an outlier if its saliency exceeds M times its layer's mean."""

    def measure(self, saliencies: "Saliencies") -> float:
        """Percentage of outliers among all weights of the layer."""
        import torch

        total = sum(float(saliency.sum(dtype=torch.float64)) for saliency in saliencies())
        count = sum(saliency.numel() for saliency in saliencies())
        threshold = self.outlier_multiple * total / count
        return 100 * sum(int((saliency > threshold).sum()) for saliency in saliencies()) / count

    def allocate(self, measured: Sequence[float], prunable: Sequence[int], ratio: float) -> list[float]:
        low, width = min(measured), max(measured) - min(measured)
        keep_more = [(value - low) / width * 2 * self.lamda if width else 0.0 for value in measured]
        return _centred([-more for more in keep_more], prunable, ratio)


def _centred(offsets: Sequence[float], sizes: Sequence[int], mean: float) -> list[float]:
    """offsets + c, clipped to [0, 1], with c such that the mean weighted by `sizes` is `mean`."""
    low, high = -max(offsets), 1 - min(offsets)
    for _ in range(100):
        centre = (low + high) / 2
        values = [min(max(centre + offset, 0.0), 1.0) for offset in offsets]
        if sum(v * n for v, n in zip(values, sizes, strict=True)) < mean * sum(sizes):
            low = centre
        else:
            high = centre
    return values
