"""Lu et al.: the loss of every subset of experts, and the subset that is chosen, layer by layer and progressively."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.reconstruction.exhaustive import Exhaustive
from stun_exp.expert_pruner.reconstruction.search import Losses
from stun_exp.expert_pruner.reconstruction.token_grams import TokenGrams
from stun_exp.moe.observe import observe
from stun_exp.moe.statistics import RoutedOutputs
from stun_exp.streaming.walk import Walk

CPU = torch.device("cpu")


def every_loss(grams: TokenGrams, num_removed: int) -> dict[tuple[int, ...], float]:
    """The loss of each set of so many of the eight experts."""
    losses, found = Losses(grams, 8), {}
    for removed in combinations(range(8), num_removed - 1):
        for expert, loss in enumerate(losses.one_more(removed)):
            if expert not in removed:
                found[tuple(sorted((*removed, expert)))] = loss
    return found


@pytest.mark.parametrize("number", range(4))
def test_losses_and_choices(
    number: int,
    published: Checkpoint,
    tokens_BT: Tensor,
    golden: Callable[[str], Any],
    configured: Callable[..., Any],
) -> None:
    """Two batches of 8 sequences, as published: the loss is a sum over batches, so it depends on their size.

    Theirs runs the layer again for each subset, ours computes with inner products. Progressively the target is the full
    model's, the input comes through the layers pruned before.
    """
    run = golden("lu")["runs"][number]
    progressive, num_removed = run["method"] == "progressive_pruning", 8 - run["r"]
    assert run["batch_size"] == 8
    pruner = configured(Exhaustive, "expert_pruner/exhaustive", ratio=num_removed / 8, progressive=progressive)
    batches_BT = list(tokens_BT.split(8))
    walks = [Walk(published, batches_BT, CPU, what) for what in ("golden", "full model")]
    for step, full, expected in zip(*walks, run["layers"], strict=True):
        statistics = pruner.statistics(step.layer)
        if progressive:
            outputs = RoutedOutputs()
            with observe(full.layer, [outputs]):
                full.forward()
            statistics[0].reach(outputs.outputs_TD)
        with observe(step.layer, statistics):
            step.forward()
        published_losses = {tuple(dropped): loss for dropped, loss in expected["losses"]}
        assert every_loss(statistics[0], num_removed) == pytest.approx(published_losses, rel=1e-5)
        assert len(published_losses) == {2: 28, 4: 70}[num_removed]
        plan = pruner.examine(step.layer, statistics, run["r"])
        assert sorted(set(range(8)) - set(plan.kept)) == expected["dropped"]
        assert plan.facts["loss"] == pytest.approx(published_losses[tuple(expected["dropped"])], rel=1e-5)
        if progressive:
            step.layer.apply(plan)
            step.changed()


def test_runs_are_all_of_them(golden: Callable[[str], Any]) -> None:
    kinds = [(run["method"], run["r"]) for run in golden("lu")["runs"]]
    assert kinds == [(f"{kind}_pruning", r) for kind in ("layerwise", "progressive") for r in (6, 4)]
