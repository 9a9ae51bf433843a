"""The preset that repeats STUN's published code."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.stun.stun import STUN
from stun_exp.moe.plan import Plan
from stun_exp.moe.statistics import Coactivation

Planned = Callable[..., Plan]
CONF = Path(__file__).parents[2] / "conf" / "expert_pruner" / "stun_official.yaml"


def official(**settings: Any) -> STUN:
    config = yaml.safe_load(CONF.read_text()) | settings
    module, _, name = config.pop("_target_").rpartition(".")
    built = getattr(import_module(module), name)(**config)
    assert isinstance(built, STUN)
    return built


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def plane(num_experts: int, seed: int) -> Tensor:
    return torch.randn(num_experts, 2, generator=torch.Generator().manual_seed(seed))


def script(rows: list[Tensor], threshold: float, most_removed: int) -> list[list[list[int]]]:
    """The script's clusters at a threshold, from rows over the router's norm in fp32, step by step."""
    result = []
    for rows_ED in rows:
        n = len(rows_ED)
        d = (torch.cdist(rows_ED, rows_ED) / rows_ED.norm()).fill_diagonal_(torch.inf)
        clusters = [{expert} for expert in range(n)]
        while d.min() < threshold and len(clusters) > n - most_removed:
            v1, v2 = divmod(int(d.argmin()), n)
            (one,), (two,) = ([c for c in clusters if v in c] for v in (v1, v2))
            if all(d[c, v2] < threshold for c in one) and all(d[c, v1] < threshold for c in two):
                clusters = [c for c in clusters if c not in (one, two)] + [one | two]
                d[list(one), v2] = torch.inf
                d[list(two), v1] = torch.inf
            else:
                d[v1, v2] = d[v2, v1] = torch.inf
        result.append(sorted(map(sorted, clusters)))
    return result


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5])
def test_clusters_are_the_scripts_at_the_threshold_found(
    ratio: float, seed: int, planned: Planned, source: Any
) -> None:
    rows = [plane(size, 10 * seed + layer) for layer, size in enumerate((8, 11, 6))]
    plan = planned(official(ratio=ratio), [source(i, r, torch.randn(len(r), 4), top_k=2) for i, r in enumerate(rows)])
    layers = plan.files["clusters.json"]["layers"]
    (threshold,) = {layer["threshold"] for layer in layers}
    # Never fewer than top_k: the script's own limit counts what is removed, a layer of n loses at most n - 2.
    expected = [script([r], threshold, len(r) - 2)[0] for r in rows]
    assert [layer["clusters"] for layer in layers] == expected
    asked = 25 - round(25 * ratio)
    assert (sum(map(len, expected)) == asked) is (plan.warnings == [])


def test_linkage_is_not_complete(planned: Planned, source: Any) -> None:
    """Rows at 0, 1, 2.02, 3.03 and at 40, 42.9: complete linkage merges the last two before it spans 3.03.

    The official rule merges 0-1 and 2-3, then meets 1-2 and looks at 0-2 and 1-3, both below 2.1, but never at 0-3.
    """
    line = source(0, column(0, 1, 2.02, 3.03, 40, 42.9), column(1, 2, 3, 4, 5, 6))
    found = {}
    for linkage in ("official", "complete"):
        (layer,) = planned(official(ratio=0.5, linkage=linkage), [line]).files["clusters.json"]["layers"]
        found[linkage] = layer["clusters"]
    assert found == {"official": [[0, 1, 2, 3], [4], [5]], "complete": [[0, 1], [2, 3], [4, 5]]}


def test_three_clusters_are_kept_as_they_are_and_two_become_means(planned: Planned, source: Any) -> None:
    """merge_max_clusters=2: a layer of at most two clusters is reconstructed, one of three is not."""
    rows, weights = column(0, 0.1, 5, 9), column(1, 2, 4, 8)
    three = planned(official(ratio=0.25), [source(0, rows, weights)]).layers[0]
    two = planned(official(ratio=0.5), [source(0, rows, weights)]).layers[0]
    assert three.groups == [[0], [2], [3]]
    assert two.groups == [[0, 1], [2, 3]]


def test_an_unreachable_total_is_told_and_the_nearest_is_taken(planned: Planned, source: Any) -> None:
    """Five rows at right angles, all equally far apart: none merge, or all down to top_k. Three is as near to both.

    The script would end here; we keep more rather than fewer.
    """
    plan = planned(official(ratio=0.4), [source(0, torch.eye(5), torch.randn(5, 3))])
    (warning,) = plan.warnings
    assert "the official search finds no threshold that keeps 3 experts; of all thresholds, " in warning
    assert warning.endswith("comes nearest and keeps 5")
    assert len(plan.layers[0].groups) == 5


def test_each_layer_may_have_a_threshold_of_its_own(planned: Planned, source: Any) -> None:
    """Half of each layer; the second is the first, stretched, so its threshold is too."""
    rows = plane(8, 1)
    layers = [source(i, r, torch.randn(8, 3)) for i, r in enumerate((rows, 3 * rows))]
    plan = planned(official(ratio=0.5, budget="per_layer", router_scale="none"), layers)
    first, second = plan.files["clusters.json"]["layers"]
    assert first["clusters"] == second["clusters"]
    assert len(first["clusters"]) == 4
    assert second["threshold"] > first["threshold"]


def test_the_readme_command_for_arctic(planned: Planned, source: Any) -> None:
    """Coactivation alone makes every distance negative; the threshold found is negative too."""
    count_EE = np.triu(np.random.default_rng(0).integers(1, 50, (8, 8)), 1)
    together = Coactivation(8)
    together.count_EE = torch.tensor(count_EE + count_EE.T, dtype=torch.float64)
    pruner = official(ratio=0.25, lambda1=0.0, lambda2=1.0)
    plan = planned(pruner, [source(0, torch.ones(8, 1), torch.randn(8, 3))], [[together]])
    (layer,) = plan.files["clusters.json"]["layers"]
    assert plan.warnings == []
    assert len(layer["clusters"]) == 6
    assert layer["threshold"] < 0


@pytest.mark.parametrize("ratio", [0.0, 0.2])
def test_it_runs_on_every_family(
    ratio: float, checkpoint: Checkpoint, tokens_BT: Tensor, plan_and_passes: Callable[..., tuple[Plan, float]]
) -> None:
    plan, forward_passes = plan_and_passes(checkpoint, official(ratio=ratio), [tokens_BT])
    assert forward_passes == 0
    asked = round(ratio * sum(layer.num_experts for layer in plan.layers))
    gone = sum(layer.num_experts - len(layer.groups) for layer in plan.layers)
    assert gone == asked or plan.warnings


def test_a_published_threshold_can_be_typed(planned: Planned, source: Any) -> None:
    """Rows at 0, 1, 5 and 9 over their norm, 10.3: below 0.2 the first two merge, and below 0.6 all would.

    The layer may lose one, so three stay even there, as with the script's own limit.
    """
    layer = source(0, column(0, 1, 5, 9), column(1, 2, 4, 8))
    for settings in ({"threshold": 0.2}, {"threshold": 0.6, "max_removed_per_layer": 1}):
        plan = planned(official(ratio=0.25, **settings), [layer])
        assert plan.layers[0].groups == [[0], [2], [3]]
        assert plan.files["clusters.json"]["layers"][0]["threshold"] == settings["threshold"]


def test_the_figures_know_the_limit(planned: Planned, source: Any) -> None:
    """They draw what each budget keeps: of six, one may go here, and four where the router alone limits it."""
    layer = source(0, column(0, 1, 5, 9, 20, 33), torch.randn(6, 3), top_k=2)
    for limit, fewest in ((1, 5), (None, 2)):
        plan = planned(official(ratio=1 / 6, max_removed_per_layer=limit), [layer])
        assert plan.files["clusters.json"]["layers"][0]["min_experts"] == fewest


def test_one_threshold_does_not_go_with_one_for_each_layer() -> None:
    with pytest.raises(
        ValueError, match=r"threshold=0\.5 .* budget=per_layer .* pass budget=global, or threshold=null"
    ):
        official(ratio=0.25, threshold=0.5, budget="per_layer")
