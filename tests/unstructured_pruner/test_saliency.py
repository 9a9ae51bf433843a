"""Scores are compared within a row, a matrix, a layer or neighbors; what is asked goes, and nothing else."""

from itertools import product
from typing import Literal

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from stun_exp.cli.main import CONF
from stun_exp.unstructured_pruner.magnitude import Magnitude
from stun_exp.unstructured_pruner.moe_pruner import MoEPruner
from stun_exp.unstructured_pruner.pattern import fixed_ratio
from stun_exp.unstructured_pruner.protocol import Task
from stun_exp.unstructured_pruner.wanda import Wanda

Group = Literal["row", "cumulative", "matrix", "layer"]


def magnitude(group: Group = "row", pattern: str = "unstructured") -> Magnitude:
    """The plainest of them: a weight's saliency is its size."""
    return Magnitude(attention=True, group=group, pattern=pattern)


def tasks(*matrices: tuple[Tensor, float]) -> list[Task]:
    return [Task(f"matrix {i}", weight_OC, None, ratio) for i, (weight_OC, ratio) in enumerate(matrices)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_layer_is_compared_as_a_whole_and_a_matrix_by_itself() -> None:
    """Half of each of two matrices, one of them ten times larger: as a layer the small one goes whole."""
    small, large = torch.tensor([[0.1, -0.4], [0.3, 0.2]]), torch.tensor([[1.0, -4.0], [3.0, 2.0]])
    assert magnitude("matrix").prune_(tasks((one := small.clone(), 0.5), (other := large.clone(), 0.5))) == []
    assert [one.tolist(), other.tolist()] == [
        torch.tensor([[0.0, -0.4], [0.3, 0.0]]).tolist(),
        torch.tensor([[0.0, -4.0], [3.0, 0.0]]).tolist(),
    ]
    assert magnitude("layer").prune_(tasks((one := small.clone(), 0.5), (other := large.clone(), 0.5))) == []
    assert not bool(one.any())
    assert torch.equal(other, large)


def test_a_layer_loses_what_its_matrices_were_asked_together() -> None:
    """0.25 of 24 and 0.5 of 12 are 12 of 36; a matrix of which nothing is asked is not compared."""
    first, second, spared = normal(4, 6), normal(3, 4, seed=1), torch.full((2, 2), 1e-6)
    assert magnitude("layer").prune_(tasks((first, 0.25), (second, 0.5), (spared, 0.0))) == []
    assert int((first == 0).sum()) + int((second == 0).sum()) == 12
    assert bool((spared == 1e-6).all())


@pytest.mark.parametrize("group", ["row", "cumulative", "matrix", "layer"])
def test_nothing_asked_changes_nothing(group: Group) -> None:
    weight = normal(5, 8)
    before = weight.clone()
    assert magnitude(group).prune_(tasks((weight, 0.0))) == []
    assert magnitude(group).prune_([]) == []
    assert torch.equal(weight, before)


@pytest.mark.parametrize("group", ["row", "cumulative", "matrix", "layer"])
def test_masks_are_nested_and_exact_in_every_group(group: Group) -> None:
    before = torch.zeros(7, 11, dtype=torch.bool)
    for percent in range(0, 101, 5):
        weight = normal(7, 11)
        magnitude(group).prune_(tasks((weight, percent / 100)))
        assert int((weight == 0).sum()) == round(77 * percent / 100)
        assert bool((weight == 0)[before].all())
        before = weight == 0


@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4), ("3:8", 3, 8)])
def test_a_pattern_holds_in_every_group_of_neighbors(pattern: str, n: int, m: int) -> None:
    pruner, weight = magnitude(pattern=pattern), normal(6, 24)
    assert fixed_ratio(pruner.pattern) == n / m
    before = weight.clone()
    pruner.prune_(tasks((weight, n / m)))
    zeros = (weight == 0).view(6, 24 // m, m)
    assert zeros.sum(2).unique().tolist() == [n]
    groups = before.abs().view(6, 24 // m, m)
    assert bool((groups.masked_fill(~zeros, 0).amax(2) <= groups.masked_fill(zeros, torch.inf).amin(2)).all())


def test_a_pattern_by_hand() -> None:
    """2:4 removes two of every four; of three equal ones the two on the left."""
    weight = torch.tensor([[4.0, 1.0, -3.0, 2.0, 5.0, 5.0, 5.0, 9.0]])
    magnitude(pattern="2:4").prune_(tasks((weight, 0.5)))
    assert weight.tolist() == [[4.0, 0.0, -3.0, 0.0, 0.0, 0.0, 5.0, 9.0]]


def test_a_layers_own_share_of_a_pattern_is_rounded_to_neighbors() -> None:
    """An allocation may ask 0.55 of a layer under 4:8: 4 of 8. It must not be 8 columns rounded anyhow."""
    weight = normal(6, 24)
    magnitude(pattern="4:8").prune_(tasks((weight, 0.55)))
    assert (weight == 0).view(6, 3, 8).sum(2).unique().tolist() == [4]


def test_a_width_that_the_pattern_does_not_divide_is_named() -> None:
    with pytest.raises(ValueError, match=r"unstructured_pruner.pattern=2:4: 4 neighbors .* the 10 inputs of matrix 0"):
        magnitude(pattern="2:4").prune_(tasks((normal(4, 10), 0.5)))


def test_unstructured_has_no_fixed_ratio() -> None:
    assert fixed_ratio(magnitude().pattern) is None


@pytest.mark.parametrize("name", ["wanda", "moe_pruner", "magnitude"])
def test_every_combination_of_settings_is_one_of_a_pruner_or_a_mistake(name: str) -> None:
    """The one mistake is a group beside a pattern; nothing else excludes anything."""
    component = {"wanda": Wanda, "moe_pruner": MoEPruner, "magnitude": Magnitude}[name]
    config = yaml.safe_load((CONF / f"unstructured_pruner/{name}.yaml").read_text())
    conf = {key: value for key, value in config.items() if key != "_target_"}
    choices: dict[str, list[object]] = {
        "attention": [True, False],
        "group": ["row", "cumulative", "matrix", "layer"],
        "pattern": ["unstructured", "2:4", "3:8"],
        "inputs": ["pruned", "dense"],
        "min_tokens": [1, 64],
        "starved": ["every_token", "shared", "magnitude", "dense"],
    }
    assert conf.keys() <= choices.keys()
    for values in product(*(choices[key] for key in conf)):
        settings = dict(zip(conf, values, strict=True))
        if settings["pattern"] != "unstructured" and settings["group"] in ("cumulative", "layer"):
            with pytest.raises(ValidationError, match="has no effect"):
                component(**settings)
        else:
            assert component(**settings).model_dump() == settings
