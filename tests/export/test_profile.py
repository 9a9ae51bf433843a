"""The retained experts alone, applied to the unpruned model, are the model that the plan makes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.export.profile import _NO_RANKING, ProfileExport
from stun_exp.export.protocol import Pruned
from stun_exp.moe.plan import LayerPlan, Plan, keep

Make = Callable[..., Pruned]
KEPT = {0: [0, 2, 3, 5], 2: [1, 2, 4]}


def test_the_file_makes_the_model_of_the_plan(make_pruned: Make) -> None:
    result = ProfileExport().export(make_pruned("mixtral", KEPT))
    assert (result["export"], result["written"]) == ("profile", "retained_experts.json")
    assert result["num_experts"] == [4, 6, 3]
    assert result["max_logit_difference"] == 0
    assert result["notes"] == [_NO_RANKING]
    json.dumps(result)


def test_an_encoder_and_a_decoder_are_numbered_through(make_pruned: Make) -> None:
    assert ProfileExport().export(make_pruned("switch_transformers", {3: [0, 1, 4]}))["max_logit_difference"] == 0


@pytest.mark.parametrize("wrong", [{"0": [0, 2, 3, 4]}, {"0": [0, 2, 3, 5, 1]}])
def test_a_file_that_makes_another_model_is_refused(make_pruned: Make, wrong: dict[str, list[int]]) -> None:
    """One expert exchanged, and one too many."""
    pruned = make_pruned("mixtral", KEPT)
    content = json.loads(pruned.profile.read_text())
    content["retained_experts"] |= wrong
    pruned.profile.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"retained_experts.json, applied to .*, is not the pruned model in memory"):
        ProfileExport().export(pruned)


def test_the_ranking_of_all_experts_goes_along(make_pruned: Make) -> None:
    """A line for each layer, and none at all for a method without an order: what an earlier run left there goes."""
    pruned = make_pruned("mixtral", KEPT)
    ranked = [
        replace(layer, facts={"scores": [0.5] * 6, "ranking": {"experts": [*layer.kept, *gone(layer)], "fewest": 2}})
        for layer in pruned.plan.layers
    ]
    file = pruned.profile.with_name("expert_ranking.jsonl")
    result = ProfileExport().export(replace(pruned, plan=Plan(ranked)))
    assert result["ranking"] == file.name
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0] == {"layer": 0, "ranking": [0, 2, 3, 5, 1, 4], "scores": [0.5] * 6, "fewest": 2}
    assert [line["layer"] for line in lines] == [0, 1, 2]
    result = ProfileExport().export(replace(pruned, plan=Plan([*ranked[:2], pruned.plan.layers[2]])))
    assert result["ranking"] is None
    assert result["notes"][0].startswith("no expert_ranking.jsonl")
    assert not file.exists()


def gone(layer: LayerPlan) -> list[int]:
    return [expert for expert in range(layer.num_experts) if expert not in layer.kept]


def test_what_the_file_does_not_hold_is_said(make_pruned: Make) -> None:
    """The comparison is with the experts' plan alone, so that zeros on disk do not make it fail."""
    pruned = make_pruned("mixtral", KEPT, zeros=True)
    note, _ = ProfileExport().export(pruned)["notes"]
    assert "the pruned weights are in the checkpoint only" in note
    note, _ = ProfileExport().export(replace(pruned, recovered=True))["notes"]
    assert "the pruned weights and the training are in the checkpoint only" in note


def test_merged_experts_are_refused_before_weights_are_pruned(mixtral: Checkpoint) -> None:
    merged = LayerPlan(1, 6, [[0, 3], [1], [2]], [0, 1, 2])
    with pytest.raises(ValueError, match=r"the plan merges experts \(layer 1, 1 layers in all\).*export=hf_unequal"):
        ProfileExport().check_plan(mixtral, Plan([keep(0, 6, [0, 1]), merged]))
    ProfileExport().check_plan(mixtral, Plan([keep(0, 6, [0, 1])]))


@pytest.mark.parametrize("method", ["reap", "random", "greedy_reconstruction"])
def test_a_run_leaves_a_ranking_that_agrees_with_its_profile(
    method: str, runner: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    more = ["expert_pruner.progressive=false"] if method == "greedy_reconstruction" else []
    report = runner(f"expert_pruner={method}", "expert_pruner.ratio=0.5", *more, "sparsity=0.6", "export=profile")
    assert report["export"]["ranking"] == "expert_ranking.jsonl"
    profile = json.loads((tmp_path / "run/retained_experts.json").read_text())["retained_experts"]
    for line in map(json.loads, (tmp_path / "run/expert_ranking.jsonl").read_text().splitlines()):
        assert sorted(line["ranking"][:3]) == profile[str(line["layer"])]
        assert (line["scores"] is None) == (method == "greedy_reconstruction")
