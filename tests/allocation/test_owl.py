"""OWL: the more outliers a layer, or an expert, has, the more of it stays."""

from collections.abc import Iterator
from typing import Literal

import pytest
import torch
from torch import Tensor

from stun_exp.allocation.owl import OWL
from stun_exp.unstructured_pruner.masks import SquaredNorm


def owl(
    lamda: float = 0.08, outlier_multiple: float = 5.0, center: Literal["parameters", "layers"] = "parameters"
) -> OWL:
    return OWL(lamda=lamda, outlier_multiple=outlier_multiple, per="layer", pool="reached", center=center)


def weighted_mean(ratios: list[float], sizes: list[int]) -> float:
    return sum(r * n for r, n in zip(ratios, sizes, strict=True)) / sum(sizes)


def test_outlier_ratio_by_hand() -> None:
    """Nine saliencies 1 and one 11: the mean of the layer is 2, and only 11 exceeds 5 times that: 1 of 10, 10 %.

    The mean is over the layer: within the second matrix, (1 + 11) / 2 = 6, nothing would be an outlier.
    """

    def saliencies() -> Iterator[Tensor]:
        yield torch.ones(2, 4)
        yield torch.tensor([[1.0, 11.0]])

    assert owl().measure([saliencies]) == [pytest.approx(10.0)]
    assert owl(outlier_multiple=5.5).measure([saliencies]) == [0.0]  # 11 does not exceed 11


def test_weights_without_saliency_make_outliers_of_others() -> None:
    """Nine 1 and one 11 have the mean 2, which 11 does not exceed 5.5 times; ten zeros more, and it is 1 of 20, 5 %."""

    def saliencies() -> Iterator[Tensor]:
        yield torch.tensor([[1.0] * 9 + [11.0]])
        yield torch.zeros(2, 5)

    assert owl(outlier_multiple=5.5).measure([saliencies]) == [pytest.approx(5.0)]


def test_experts_are_measured_against_their_layer() -> None:
    """The same matrices as two units: 0 % and 50 %; against its own mean, 6, the second would have none."""
    units = [lambda: [torch.ones(2, 4)], lambda: [torch.tensor([[1.0, 11.0]])]]
    assert owl().measure(units) == [0.0, pytest.approx(50.0)]


def test_ratios_by_hand() -> None:
    """Outliers 0, 1, 2 keep 0, 0.08, 0.16 more; centered at 0.6 the ratios are 0.68, 0.6, 0.52."""
    allotment = owl().allocate([0.0, 1.0, 2.0], [100, 100, 100], 0.6)
    assert allotment.ratios == pytest.approx([0.68, 0.6, 0.52])
    assert not allotment.limited


def test_the_mean_weighted_by_parameters_is_the_asked_ratio() -> None:
    """The official mean over layers would miss the total as soon as layers have different sizes."""
    measured, sizes = [3.0, 0.5, 1.0, 2.2], [100, 900, 350, 7]
    for ratio in (0.0, 0.05, 0.3, 0.5, 0.77, 0.95, 1.0):
        ratios = owl().allocate(measured, sizes, ratio).ratios
        assert weighted_mean(ratios, sizes) == pytest.approx(ratio, abs=1e-12)
    assert owl().exact


@pytest.mark.parametrize("lamda", [0.0, 0.02, 0.08, 0.2])
def test_the_spread_is_two_lambda(lamda: float) -> None:
    ratios = owl(lamda).allocate([1.0, 3.0, 2.0, 1.5], [10, 20, 30, 40], 0.5).ratios
    assert max(ratios) - min(ratios) == pytest.approx(2 * lamda)


def test_more_outliers_mean_a_lower_ratio() -> None:
    ratios = owl().allocate([2.0, 5.0, 1.0, 3.0], [10, 20, 30, 40], 0.5).ratios
    assert sorted(range(4), key=lambda layer: ratios[layer]) == [1, 3, 0, 2]


def test_what_a_layer_cannot_take_is_spent_on_the_others_and_said() -> None:
    """At 0.95 the layer without outliers would get 1.03; the surplus goes to the other one, the total stands."""
    high = owl().allocate([0.0, 1.0], [100, 100], 0.95)
    assert high.ratios == pytest.approx([1.0, 0.9])
    assert high.limited == {0: "allocation.lamda=0.08 asks 1.0300 of the weights, and 1.0000 is set"}
    low = owl().allocate([0.0, 1.0], [100, 100], 0.05)
    assert low.ratios == pytest.approx([0.1, 0.0])
    assert low.limited == {1: "allocation.lamda=0.08 asks -0.0300 of the weights, and 0.0000 is set"}
    # Weighted by 1 and 3, the mean of 0 and -0.16 is -0.12; the larger layer makes up for 7 of 100 by 7 of 300.
    unequal = owl().allocate([0.0, 1.0], [100, 300], 0.95)
    assert unequal.ratios == pytest.approx([1.0, 0.91 + 0.07 / 3])
    assert unequal.limited == {0: "allocation.lamda=0.08 asks 1.0700 of the weights, and 1.0000 is set"}


@pytest.mark.parametrize("ratio", [0.08, 0.92])
def test_a_layer_exactly_at_the_limit_is_not_limited(ratio: float) -> None:
    """0.92 + 0.08 is 1 but for the rounding of floats, which is nothing to warn of."""
    allotment = owl().allocate([0.0, 1.0], [100, 100], ratio)
    assert allotment.ratios == pytest.approx([ratio + 0.08, ratio - 0.08])
    assert not allotment.limited


def test_equal_measurements_are_uniform() -> None:
    """The official formula divides by max - min, here zero."""
    for center in ("parameters", "layers"):
        ratios = owl(center=center).allocate([1.7, 1.7, 1.7], [1, 2, 3], 0.42).ratios
        assert ratios == pytest.approx([0.42, 0.42, 0.42])


def test_the_scale_of_saliencies_does_not_matter() -> None:
    values = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)) ** 8
    assert owl().measure([lambda: [values]]) == pytest.approx(owl().measure([lambda: [1000 * values]]))
    assert owl().measure([lambda: [values]])[0] > 0


def test_a_rare_expert_gets_the_ratio_of_a_frequent_one_like_it() -> None:
    """Same weights, same kind of input, a hundredth of the tokens, beside an expert with fewer outliers.

    Summed over tokens, the rare expert's inputs are a tenth as large, so it would seem to have no outliers, and would
    lose the most of all.
    """
    generator = torch.Generator().manual_seed(0)
    spread_C = torch.rand(64, generator=generator) + 0.5
    spiky_OC = torch.randn(200, 64, generator=generator) ** 3
    plain_OC = torch.randn(200, 64, generator=generator) ** 2
    norms = []
    for num_tokens in (40_000, 400, 40_000):
        norms.append(SquaredNorm(64))
        norms[-1].update(spread_C * torch.randn(num_tokens, 64, generator=generator))

    def ratios(per_token: bool) -> list[float]:
        experts = zip((spiky_OC, spiky_OC, plain_OC), norms, strict=True)
        saliencies = [weight_OC.abs() * norm.norm_C(per_token) for weight_OC, norm in experts]
        units = [lambda saliency=saliency: [saliency] for saliency in saliencies]
        return owl().allocate(owl().measure(units), [1, 1, 1], 0.5).ratios

    frequent, rare, plain = ratios(per_token=True)
    assert rare == pytest.approx(frequent, abs=0.01)
    assert plain > frequent + 0.14
    frequent, rare, plain = ratios(per_token=False)
    assert rare == max(frequent, rare, plain)
    assert rare > frequent + 0.14
