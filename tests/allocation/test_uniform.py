"""Uniform: the same ratio everywhere."""

from stun_exp.allocation.uniform import Uniform


def test_every_layer_gets_the_asked_ratio_whatever_its_size() -> None:
    allotment = Uniform().allocate([], [10, 1000, 1], 0.37)
    assert allotment.ratios == [0.37, 0.37, 0.37]
    assert not allotment.limited


def test_it_measures_nothing() -> None:
    """So no forward pass is spent on it."""
    assert not Uniform().measures
