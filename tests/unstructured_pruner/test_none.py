"""Off is a component: all weights stay."""

import pytest
import torch

from stun_exp.unstructured_pruner.none import KeepAllWeights
from stun_exp.unstructured_pruner.protocol import Task


def test_it_prunes_nothing_and_needs_no_data() -> None:
    pruner = KeepAllWeights()
    weight = torch.ones(2, 3)
    assert pruner.prune_([Task("matrix", weight, None, 0.0)]) == []
    assert pruner.statistic(3) is None
    assert not pruner.prunes
    assert bool((weight == 1).all())


def test_asking_it_to_prune_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError):
        KeepAllWeights().prune_([Task("matrix", torch.ones(2, 3), None, 0.1)])
