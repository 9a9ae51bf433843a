"""What the report says of the expert stage: clusters by hand, for methods that cluster, merge and drop."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stun_exp.moe.plan import LayerPlan, Plan, keep, plan_id
from stun_exp.pipeline.expert_stage import expert_stage_json
from stun_exp.utils.arrays import read_arrays

Runner = Callable[..., dict[str, Any]]
REPRESENTED = LayerPlan(0, 6, [[1], [4]], [1, 4], clusters=[[1, 2, 3], [0, 4, 5]])


def test_clusters_are_those_behind_the_kept_experts() -> None:
    """A group of one may stand for three; what is merged is its cluster; what is dropped belongs to none."""
    merged = LayerPlan(1, 6, [[0, 5], [1, 2, 3, 4]], [0, 2])
    plan = Plan([REPRESENTED, merged, keep(3, 6, [0, 2, 5])])
    assert expert_stage_json(plan) == {
        "plan_id": plan_id(plan),
        "num_clusters": 7,
        "largest_cluster": 4,
        "per_layer": [
            {"layer": 0, "num_experts": 6, "kept": 2, "cluster_sizes": [3, 3]},
            {"layer": 1, "num_experts": 6, "kept": 2, "cluster_sizes": [4, 2]},
            {"layer": 3, "num_experts": 6, "kept": 3, "cluster_sizes": [1, 1, 1]},
        ],
    }


def test_where_no_experts_go_there_is_nothing_to_say() -> None:
    assert expert_stage_json(Plan([keep(0, 2, [0, 1]), keep(1, 3, [0, 1, 2])])) is None
    assert expert_stage_json(Plan([keep(0, 2, [0, 1]), keep(1, 3, [0, 1])])) is not None


def test_what_was_measured_stands_beside_it() -> None:
    damage = {"tokens": 64, "gate_mass_moved": 0.25, "per_layer": {0: {"gate_mass_moved": 0.25}}}
    found = expert_stage_json(Plan([REPRESENTED]), damage)
    assert found is not None
    assert (found["tokens"], found["gate_mass_moved"]) == (64, 0.25)
    assert found["per_layer"][0]["gate_mass_moved"] == 0.25
    assert found["per_layer"][0]["cluster_sizes"] == [3, 3]


@pytest.mark.parametrize("method", ["stun", "hc_smoe", "m_smoe", "frequency"])
def test_a_run_reports_the_clusters_of_its_plan(runner: Runner, tmp_path: Path, method: str) -> None:
    """Clusters and mergers account for every expert, scores for those that stay."""
    found = runner(f"expert_pruner={method}", "expert_pruner.ratio=0.5", "sparsity=0.6")["expert_stage"]
    plan = json.loads((tmp_path / "run/plan.json").read_text())["layers"]
    assert [layer["kept"] for layer in found["per_layer"]] == [len(layer["kept"]) for layer in plan]
    assert found["num_clusters"] == sum(len(layer["kept"]) for layer in plan) == 9
    sizes = [layer["cluster_sizes"] for layer in found["per_layer"]]
    assert [sum(of_layer) for of_layer in sizes] == [3] * 3 if method == "frequency" else [6] * 3
    assert found["largest_cluster"] == max(map(max, sizes))
    if method == "stun":
        clusters = json.loads((tmp_path / "run/clusters.json").read_text())["layers"]
        assert sizes == [layer["sizes"] for layer in clusters]


def test_a_replayed_plan_is_the_same_plan_with_the_same_clusters(runner: Runner, tmp_path: Path) -> None:
    first = runner("expert_pruner.ratio=0.5", "expert_pruner.kappa=0", "sparsity=0.6")["expert_stage"]
    again = ("expert_pruner=from_plan", f"expert_pruner.path={tmp_path}/run")
    assert first["largest_cluster"] > 1
    assert runner(*again, "sparsity=0.6", out=tmp_path / "again")["expert_stage"] == first


def test_an_unpruned_run_has_no_expert_stage(runner: Runner) -> None:
    assert runner("method=unpruned")["expert_stage"] is None


def test_distances_lie_beside_the_clusters_and_a_run_that_goes_on_writes_the_same(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three layers of six experts have 15 pairs each; the heights of all merges are among their distances.

    The run is stopped after its plan; what goes on takes the plan from the journal, where bytes have no place.
    """
    monkeypatch.setattr("stun_exp.pipeline.run.budget_of", lambda *_, **__: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception):
        runner()
    file = tmp_path / "run" / "distances.npz"
    content = file.read_bytes()
    file.unlink()
    monkeypatch.undo()
    monkeypatch.setattr("stun_exp.pipeline.run.decide_experts", lambda *_: pytest.fail("decided again"))
    runner()
    assert file.read_bytes() == content
    distances, clusters = read_arrays(file), json.loads((tmp_path / "run/clusters.json").read_text())["layers"]
    assert {name: (d.shape, d.dtype) for name, d in distances.items()} == dict.fromkeys("012", ((15,), np.float32))
    for layer in clusters:
        heights = np.float32(layer["heights"])
        assert set(heights) <= set(distances[str(layer["layer"])])


def test_a_file_of_somebody_s_in_the_place_of_the_distances_is_not_written_over(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "distances.npz").write_text("mine")
    with pytest.raises(ValueError, match=r"distances\.npz: the run is to write there, and no run has written"):
        runner()
    assert (tmp_path / "run" / "distances.npz").read_text() == "mine"
