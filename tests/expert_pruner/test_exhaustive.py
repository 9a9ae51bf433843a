"""All subsets at once, against one real forward pass of the layer for each."""

from collections.abc import Callable
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.reconstruction.exhaustive import Exhaustive
from stun_exp.moe.observe import observe
from stun_exp.moe.plan import Plan
from stun_exp.moe.statistics import RoutedOutputs
from stun_exp.streaming.walk import Step, Walk

PlanAndPasses = Callable[..., tuple[Plan, float]]


def exhaustive(
    ratio: float, *, progressive: bool = False, max_subsets: int = 10**6, chunk_tokens: int = 50
) -> Exhaustive:
    return Exhaustive(ratio=ratio, progressive=progressive, chunk_tokens=chunk_tokens, max_subsets=max_subsets)


def routed(step: Step) -> list[Tensor]:
    outputs = RoutedOutputs()
    with observe(step.layer, [outputs]):
        step.forward()
    return outputs.outputs_TD


def by_forward_passes(
    checkpoint: Checkpoint, batches_BT: list[Tensor], num_kept: int, progressive: bool
) -> dict[int, tuple[float, list[int]]]:
    """The oracle: layer -> least loss and its kept experts, each subset's layer cut and run."""
    best: dict[int, tuple[float, list[int]]] = {}
    walks = [Walk(checkpoint, batches_BT, torch.device("cpu"), "test") for _ in range(2)]
    for step, full in zip(*walks, strict=True):
        if not step.layer.is_moe:
            continue
        targets = routed(full)
        losses = []
        for kept in combinations(range(step.layer.num_experts), num_kept):
            layer = checkpoint.read_layer(step.layer.index)
            layer.regroup([[expert] for expert in kept])
            outputs = routed(Step(layer, step.hidden_BTD, step.arguments))
            loss = sum(float((a - b).double().norm()) for a, b in zip(outputs, targets, strict=True))
            losses.append((loss, list(kept)))
        best[step.layer.index] = min(losses)
        if progressive:
            step.layer.regroup([[expert] for expert in best[step.layer.index][1]])
            step.changed()
        else:
            step.forward()
    return best


def mixtral_of(num_experts: int, top_k: int, folder: Path) -> Checkpoint:
    torch.manual_seed(num_experts)
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=num_experts,
        num_experts_per_tok=top_k,
    )
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return Checkpoint(folder, None)


@pytest.mark.parametrize("progressive", [False, True], ids=["layer-wise", "progressive"])
@pytest.mark.parametrize(
    ("num_experts", "top_k", "num_kept"), [(5, 1, 2), (5, 2, 4), (6, 2, 3), (7, 3, 4), (7, 2, 2), (8, 2, 4), (8, 2, 6)]
)
def test_same_choice_as_a_forward_pass_for_each_subset(
    num_experts: int,
    top_k: int,
    num_kept: int,
    progressive: bool,
    tmp_path: Path,
    tokens_BT: Tensor,
    plan_and_passes: PlanAndPasses,
) -> None:
    """Two batches of different size, chunks that do not divide them, and as many experts as can be run in full."""
    checkpoint = mixtral_of(num_experts, top_k, tmp_path)
    batches_BT = [tokens_BT[:3], tokens_BT[3:]]
    pruner = exhaustive(1 - num_kept / num_experts, progressive=progressive)
    plan, _ = plan_and_passes(checkpoint, pruner, batches_BT)
    expected = by_forward_passes(checkpoint, batches_BT, num_kept, progressive)
    for layer in plan.layers:
        loss, kept = expected[layer.layer]
        assert layer.kept == kept
        assert layer.facts["loss"] == pytest.approx(loss, rel=1e-5)
        assert layer.facts["losses_computed"] == comb(num_experts, num_kept)


@pytest.mark.parametrize("progressive", [False, True], ids=["layer-wise", "progressive"])
def test_every_family_chooses_as_its_own_forward_pass_does(
    checkpoint: Checkpoint, tokens_BT: Tensor, progressive: bool, plan_and_passes: PlanAndPasses
) -> None:
    """Routers that do not renormalize are in it: there the gates depend on every expert that is left."""
    plan, _ = plan_and_passes(checkpoint, exhaustive(1 / 3, progressive=progressive), [tokens_BT])
    expected = by_forward_passes(checkpoint, [tokens_BT], 4, progressive)
    assert {layer.layer: layer.kept for layer in plan.layers} == {i: kept for i, (_, kept) in expected.items()}
    for layer in plan.layers:
        assert layer.facts["loss"] == pytest.approx(expected[layer.layer][0], rel=1e-4)


def test_families_cover_both_kinds_of_router(tiny_model: Callable[[str], Path]) -> None:
    """Otherwise the test above would prove less than it says."""
    checkpoints = [Checkpoint(tiny_model(family), None) for family in ("mixtral", "olmoe")]
    assert [checkpoint.outline(1).renormalizes for checkpoint in checkpoints] == [True, False]


@pytest.mark.parametrize("chunk_tokens", [1, 7, 10**6])
def test_chunks_bound_memory_and_change_nothing(
    mixtral: Checkpoint, tokens_BT: Tensor, chunk_tokens: int, plan_and_passes: PlanAndPasses
) -> None:
    whole, _ = plan_and_passes(mixtral, exhaustive(0.5), [tokens_BT])
    chunked, _ = plan_and_passes(mixtral, exhaustive(0.5, chunk_tokens=chunk_tokens), [tokens_BT])
    assert [layer.kept for layer in chunked.layers] == [layer.kept for layer in whole.layers]
    for layer, other in zip(chunked.layers, whole.layers, strict=True):
        assert layer.facts["loss"] == pytest.approx(other.facts["loss"], rel=1e-6)


def test_each_expert_runs_once(mixtral: Checkpoint, tokens_BT: Tensor, plan_and_passes: PlanAndPasses) -> None:
    """6 experts on every token instead of 2 is the work of 3 passes, whatever the number of subsets."""
    _, passes = plan_and_passes(mixtral, exhaustive(0.5), [tokens_BT])
    assert passes == 3
    # And one of the full model for the targets, and one each of the two layers that feed another.
    _, passes = plan_and_passes(mixtral, exhaustive(0.5, progressive=True), [tokens_BT])
    assert passes == pytest.approx(3 + 1 + 2 / 3)


def test_loss_is_summed_over_batches(mixtral: Checkpoint, tokens_BT: Tensor, plan_and_passes: PlanAndPasses) -> None:
    """A sum of norms is not the norm of the sum: one batch of four has a smaller loss than four of one."""
    (whole, *_), (split, *_) = (
        plan_and_passes(mixtral, exhaustive(0.5), batches)[0].layers
        for batches in ([tokens_BT], list(tokens_BT.split(1)))
    )
    assert split.facts["loss"] > 1.5 * whole.facts["loss"]


def test_too_many_subsets_are_refused_before_anything_is_run(source: Any) -> None:
    """C(128, 64): the message has the number and the way out."""
    layer = source(3, torch.zeros(128, 4), top_k=2)
    with pytest.raises(
        ValueError, match=r"layer 3 has 23,951,146,041,928,082,866,135,587,776,380,551,750 subsets"
    ) as error:
        exhaustive(0.5).statistics(layer)
    assert "expert_pruner=subset_search" in str(error.value)
    assert "max_subsets=1,000,000" in str(error.value)


def test_one_by_one_counts_for_more(source: Any) -> None:
    """C(12, 6) = 924 subsets: 2,510 sets in the lattice, but 946,176 by themselves."""
    renormalizing, other = (source(0, torch.zeros(12, 4), top_k=2, renormalizes=kind) for kind in (True, False))
    exhaustive(0.5, max_subsets=2510).statistics(renormalizing)
    exhaustive(0.5, max_subsets=946_176).statistics(other)
    for layer, limit in ((renormalizing, 2509), (other, 946_175)):
        with pytest.raises(ValueError, match="924 subsets of 6 of its 12 experts"):
            exhaustive(0.5, max_subsets=limit).statistics(layer)


def test_a_router_with_groups_is_refused(source: Any) -> None:
    with pytest.raises(ValueError, match="layer 2: the router chooses among 4 groups"):
        exhaustive(0.5).statistics(source(2, torch.zeros(8, 4), num_groups=4))


def test_nothing_to_remove_changes_nothing(
    mixtral: Checkpoint, tokens_BT: Tensor, plan_and_passes: PlanAndPasses
) -> None:
    plan, _ = plan_and_passes(mixtral, exhaustive(0.0), [tokens_BT])
    assert all(layer.kept == list(range(6)) and layer.facts["loss"] < 1e-3 for layer in plan.layers)
