"""OWL as published: its own mean over layers, its own floor, and a total that unequal layers miss."""

from pathlib import Path

import pytest
import yaml

from stun_exp.allocation.owl import OWL

ROOT = Path(__file__).parent.parent.parent


def config(name: str) -> dict[str, object]:
    loaded = yaml.safe_load((ROOT / f"conf/allocation/{name}.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def settings(name: str) -> dict[str, object]:
    return {key: value for key, value in config(name).items() if key != "_target_"}


def official() -> OWL:
    return OWL.model_validate(settings("owl_official"))


def published(outliers: list[float], sparsity: float) -> list[float]:
    """The published code: r = (D - min) / (max - min) * 2 lambda; keep = r - mean(r) + 1 - s; 0.01 if <= 0."""
    low, high = min(outliers), max(outliers)
    r = [(value - low) / (high - low) * 2 * 0.08 for value in outliers]
    keep = [value - sum(r) / len(r) + (1 - sparsity) for value in r]
    return [1 - value if 1 - value > 0 else 0.01 for value in keep]


def test_it_is_a_preset_of_owl() -> None:
    assert config("owl_official")["_target_"] == "stun_exp.allocation.owl.OWL"


@pytest.mark.parametrize("sparsity", [0.05, 0.3, 0.5, 0.7])
def test_the_published_rule(sparsity: float) -> None:
    outliers = [3.0, 0.5, 1.0, 2.2]
    ratios = official().allocate(outliers, [100, 900, 350, 7], sparsity).ratios
    assert ratios == pytest.approx(published(outliers, sparsity))


def test_its_pool_is_the_published_one() -> None:
    """There an expert without a token is like any other, with a saliency of zero; here it is left out by default."""
    assert official().pools_starved
    assert not OWL.model_validate(settings("owl")).pools_starved


def test_the_mean_over_layers_is_kept_and_the_total_missed() -> None:
    """Layers of 100 and 300 get 0.58 and 0.42: the mean is 0.5, of the weights 0.46; so it says that it is inexact."""
    assert official().allocate([0.0, 1.0], [100, 300], 0.5).ratios == pytest.approx([0.58, 0.42])
    assert not official().exact


def test_nothing_to_prune_becomes_a_hundredth_and_is_said() -> None:
    """Not spent on the other layer, which gets its own 0.13; and a ratio above 1, more than there is, is capped."""
    low = official().allocate([0.0, 1.0], [100, 100], 0.05)
    assert low.ratios == pytest.approx([0.13, 0.01])
    assert low.limited == {1: "allocation.lamda=0.08 asks -0.0300 of the weights, and 0.0100 is set"}
    high = official().allocate([0.0, 1.0], [100, 100], 0.95)
    assert high.ratios == pytest.approx([1.0, 0.87])
    assert list(high.limited) == [0]
