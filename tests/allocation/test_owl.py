"""OWL: the more outliers a layer has, the more of it stays."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from stun_exp.allocation.owl import OWL


def owl(lamda: float = 0.08, outlier_multiple: float = 5.0) -> OWL:
    return OWL(lamda=lamda, outlier_multiple=outlier_multiple)


def weighted_mean(ratios: list[float], sizes: list[int]) -> float:
    return sum(r * n for r, n in zip(ratios, sizes, strict=True)) / sum(sizes)


def test_outlier_ratio_by_hand() -> None:
    """Nine saliencies 1 and one 11: the mean of the layer is 2, and only 11 exceeds 5 times that: 1 of 10, 10 %.

    The mean is over the layer: within the second matrix, (1 + 11) / 2 = 6, nothing would be an outlier.
    """

    def saliencies() -> Iterator[Tensor]:
        yield torch.ones(2, 4)
        yield torch.tensor([[1.0, 11.0]])

    assert owl().measure(saliencies) == pytest.approx(10.0)
    assert owl(outlier_multiple=5.5).measure(saliencies) == 0.0  # 11 does not exceed 11


def test_ratios_by_hand() -> None:
    """Outliers 0, 1, 2 keep 0, 0.08, 0.16 more; centred at 0.6 the ratios are 0.68, 0.6, 0.52."""
    assert owl().allocate([0.0, 1.0, 2.0], [100, 100, 100], 0.6) == pytest.approx([0.68, 0.6, 0.52])


def test_the_mean_weighted_by_parameters_is_the_asked_ratio() -> None:
    """The official mean over layers would miss the total as soon as layers have different sizes."""
    measured, sizes = [3.0, 0.5, 1.0, 2.2], [100, 900, 350, 7]
    for ratio in (0.0, 0.05, 0.3, 0.5, 0.77, 0.95, 1.0):
        assert weighted_mean(owl().allocate(measured, sizes, ratio), sizes) == pytest.approx(ratio, abs=1e-12)


@pytest.mark.parametrize("lamda", [0.0, 0.02, 0.08, 0.2])
def test_the_spread_is_two_lambda(lamda: float) -> None:
    ratios = owl(lamda).allocate([1.0, 3.0, 2.0, 1.5], [10, 20, 30, 40], 0.5)
    assert max(ratios) - min(ratios) == pytest.approx(2 * lamda)


def test_more_outliers_mean_a_lower_ratio() -> None:
    ratios = owl().allocate([2.0, 5.0, 1.0, 3.0], [10, 20, 30, 40], 0.5)
    assert sorted(range(4), key=lambda layer: ratios[layer]) == [1, 3, 0, 2]


def test_what_a_layer_cannot_take_is_spent_on_the_others() -> None:
    """At 0.95 the layer without outliers would get 1.03; the surplus goes to the other one, the total stands."""
    assert owl().allocate([0.0, 1.0], [100, 100], 0.95) == pytest.approx([1.0, 0.9])
    assert owl().allocate([0.0, 1.0], [100, 100], 0.05) == pytest.approx([0.1, 0.0])


def test_equal_measurements_are_uniform() -> None:
    """The official formula divides by max - min, here zero."""
    assert owl().allocate([1.7, 1.7, 1.7], [1, 2, 3], 0.42) == pytest.approx([0.42, 0.42, 0.42])


def test_the_scale_of_saliencies_does_not_matter() -> None:
    values = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)) ** 8
    assert owl().measure(lambda: [values]) == pytest.approx(owl().measure(lambda: [1000 * values]))
    assert owl().measure(lambda: [values]) > 0
