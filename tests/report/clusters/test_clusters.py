"""`stun-clusters`: numbers by hand, and every figure that can be drawn."""

import json
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import pytest

from stun_exp.expert_pruner.stun.merge_path import MergePath, cut_globally
from stun_exp.report.clusters.command import main, write_agreement
from stun_exp.report.clusters.findings import findings, findings_over_runs
from stun_exp.report.clusters.runs import (
    ClusteredRun,
    adjusted_rand_index,
    agreement,
    kept_by_budget,
    read_clustered_runs,
    repeated,
    stability,
)

Clusters = list[list[int]]
FIGURES = ["agreement", "cluster_sizes", "dendrograms", "experts_kept", "mass_moved", "within_cluster_distance"]


def layer(index: int, alone: dict[str, Clusters | None], gates: bool = True) -> dict[str, Any]:
    """Four experts: 0-1 merged at 1 and stayed, 2-3 and the rest would at 2 and 5."""
    return {
        "layer": index,
        "num_experts": 4,
        "min_experts": 2,
        "stride": 1,
        "pairs": [[0, 1], [2, 3], [0, 2]],
        "heights": [1.0, 2.0, 5.0],
        "threshold": 1.0,
        "clusters": [[0, 1], [2], [3]],
        "kept": [0, 2, 3],
        "sizes": [2, 1, 1],
        "within": {"mean": 1.0, "max": 1.0},
        "gate_mass": [0.25] * 4 if gates else None,
        "mass_moved": 0.25 if gates else None,
        "alone": alone,
    }


def alone(*clusters: Clusters | None) -> dict[str, Clusters | None]:
    return dict(zip(("router", "coactivation", "outputs"), clusters, strict=True))


A, B, C = [[0, 1], [2], [3]], [[0], [1], [2, 3]], [[0, 1], [2, 3]]


def write(folder: Path, layers: list[dict[str, Any]], **settings: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"settings": {"linkage": "complete", **settings}, "alone_linkage": "complete", "layers": layers}
    (folder / "clusters.json").write_text(json.dumps(content))


def test_adjusted_rand_index_by_hand() -> None:
    """Of 15 pairs, {012}{345} joins 6 and {01}{23}{45} 3, 2 of them alike; chance gives 6 * 3 / 15 = 1.2.

    (2 - 1.2) / ((6 + 3) / 2 - 1.2) = 0.8 / 3.3.
    """
    assert adjusted_rand_index([[0, 1, 2], [3, 4, 5]], [[0, 1], [2, 3], [4, 5]]) == pytest.approx(0.8 / 3.3)
    assert adjusted_rand_index([[3, 4, 5], [2, 1, 0]], [[0, 1, 2], [3, 4, 5]]) == 1
    assert adjusted_rand_index([[0], [1]], [[1], [0]]) == adjusted_rand_index([[0, 1]], [[1, 0]]) == 1


def test_adjusted_rand_index_counts_pairs_and_is_zero_by_chance() -> None:
    """Against a loop over all pairs; over random relabellings it vanishes, where the plain index does not."""
    random, experts = Random(0), list(range(9))
    fixed, values = [[0, 1, 2, 3], [4, 5], [6], [7, 8]], []
    for _ in range(3000):
        random.shuffle(experts)
        other = [experts[:3], experts[3:6], experts[6:]]
        values.append(adjusted_rand_index(fixed, other))
    together = [[any({i, j} <= set(c) for c in clusters) for i, j in combinations(range(9), 2)]
                for clusters in (fixed, other)]  # fmt: skip
    n11 = sum(a and b for a, b in zip(*together, strict=True))
    na, nb = map(sum, together)
    assert values[-1] == pytest.approx((n11 - na * nb / 36) / ((na + nb) / 2 - na * nb / 36))
    assert sum(values) / len(values) == pytest.approx(0, abs=0.015)


def test_agreement_is_between_each_two_similarities(tmp_path: Path) -> None:
    """A and B join a pair each, not the same: (0 - 1/6) / (1 - 1/6) = -0.2. C joins both: (1 - 1/3) / (3/2 - 1/3)."""
    write(tmp_path, [layer(0, alone(A, B, C)), layer(7, alone(A, None, A))])
    (run,) = read_clustered_runs(tmp_path)
    first, second = agreement(run)
    assert first == pytest.approx(
        {"layer": 0, "router-coactivation": -0.2, "router-outputs": 4 / 7, "coactivation-outputs": 4 / 7}
    )
    assert second == {"layer": 7, "router-outputs": 1.0}


def test_stability_is_over_runs_of_equal_settings(tmp_path: Path) -> None:
    """Outputs give A, A, B over three runs: the mean of 1, -0.2 and -0.2. The run of another kappa stands alone."""
    for number, outputs in enumerate((A, A, B)):
        write(tmp_path / str(number), [layer(0, alone(A, B, outputs))], kappa=3)
    write(tmp_path / "3", [layer(0, alone(A, B, C))], kappa=0)
    (group,) = repeated(read_clustered_runs(tmp_path))
    assert [run.name for run in group] == ["0", "1", "2"]
    (row,) = stability(group)
    assert row == pytest.approx({"layer": 0, "clusters": 1, "router": 1, "coactivation": 1, "outputs": 0.2})


def test_budgets_are_looked_up_on_the_paths() -> None:
    """Of two layers of four, 25 % is two experts: the merges at 1; 50 % also takes those at 2. More leaves too few."""
    run = ClusteredRun("x", Path(), {"linkage": "complete"}, [layer(0, {}), layer(1, {})])
    shares, counts = kept_by_budget(run)
    by_share = dict(zip([round(share, 2) for share in shares], zip(*counts, strict=True), strict=True))
    assert by_share[0.25] == (3, 3)
    assert by_share[0.5] == (2, 2)
    assert by_share[0.4] == (2, 3)
    assert max(by_share) == 0.55  # 4.4 of 8 is still 4


def test_budgets_are_those_that_the_pruner_would_cut_at() -> None:
    """Against its own cut, with equal heights in two layers, and a layer of two groups that lose equally many."""
    random, layers = Random(0), []
    for index, (experts, stride) in enumerate([(8, 1), (6, 1), (8, 2)]):
        steps = sorted(random.choice([0.5, 1.0, 1.5, 2.0]) for _ in range(experts // stride - 1))
        heights = [height for height in steps for _ in range(stride)]
        found = {"num_experts": experts, "min_experts": 2, "stride": stride, "pairs": [], "heights": heights}
        layers.append({"layer": index} | found)
    shares, counts = kept_by_budget(ClusteredRun("x", Path(), {"linkage": "complete"}, layers))
    paths = [MergePath(each["num_experts"], [], each["heights"], each["stride"]) for each in layers]
    for share, kept in zip(shares, zip(*counts, strict=True), strict=True):
        merges = cut_globally(paths, [2] * 3, round(22 * share))
        assert kept == tuple(path.num_experts - n for path, n in zip(paths, merges, strict=True))
    assert max(shares) == pytest.approx(0.75)  # 16.5 of 22, which is 16: six have to stay


def test_what_was_found_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Indices of A and B are -0.2, of A and C 4/7, by hand above; over both layers 0.4, 4/7 and 0.19."""
    correlation = {
        "distance-router": 1.0,
        "distance-outputs": -0.25,
        "router-coactivation": 0.125,
        "router-outputs": None,
    }
    layers = [layer(0, alone(A, B, C)), layer(7, alone(A, A, C))]
    layers[1] |= {"mass_moved": 0.5, "correlation": correlation}
    write(tmp_path, layers)
    main([str(tmp_path)])
    assert capsys.readouterr().out.partition("\n\n")[2].splitlines() == [
        f"run {tmp_path.name}: 8 experts of 2 layers in 6 clusters, the largest of 2 in layer 0",
        "  gate mass moved to other experts: 37.5 % on average over layers, the most in layer 7, 50.0 %",
        "  clusters by one similarity each, mean over layers of the adjusted Rand index (1: equal, 0: chance) and its "
        "range, and Spearman's correlation of the distances:",
        "    router and coactivation: 0.40 (-0.20 to 1.00), they agree partly; distances 0.12",
        "    router and outputs: 0.57 (0.57 to 0.57), they agree partly",
        "    coactivation and outputs: 0.57 (0.57 to 0.57), they agree partly",
        "  correlation of the distance that was clustered with that by each alone: router 1.00, outputs -0.25",
    ]
    content = json.loads((tmp_path / "agreement.json").read_text())
    assert content["runs"][0]["correlations"] == [{"layer": 0}, {"layer": 7, **correlation}]


@pytest.mark.parametrize(
    ("clusters", "told"),
    [(A, "1.00 (1.00 to 1.00), they agree fully"), (B, "-0.20 (-0.20 to -0.20), they agree no better than chance")],
)
def test_how_far_clusters_agree_is_said_in_words(clusters: Clusters, told: str) -> None:
    run = ClusteredRun("x", Path(), {}, [layer(0, alone(A, clusters, None))])
    assert [line.strip() for line in findings(run) if "router and" in line] == [f"router and coactivation: {told}"]


def test_without_the_laboratory_it_is_said_what_was_not_compared() -> None:
    *_, last = findings(ClusteredRun("x", Path(), {}, [layer(0, {}, gates=False)]))
    assert last == "  similarities were not compared; run with expert_pruner.laboratory=true"


def test_stability_is_said_for_runs_of_equal_settings() -> None:
    runs = [ClusteredRun(str(n), Path(), {}, [layer(0, alone(A, B, o))]) for n, o in enumerate((A, A, B))]
    assert list(findings_over_runs([runs])) == [
        "runs 0, 1, 2, of equal settings: mean over layers and pairs of runs",
        "    their clusters: 1.00 (1.00 to 1.00), they agree fully",
        "    clusters by router alone: 1.00 (1.00 to 1.00), they agree fully",
        "    clusters by coactivation alone: 1.00 (1.00 to 1.00), they agree fully",
        "    clusters by outputs alone: 0.20 (0.20 to 0.20), they agree a little",
    ]


def test_a_sweep_gets_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        write(tmp_path / str(seed), [layer(0, alone(A, B, C)), layer(2, alone(A, A, C))])
    main([str(tmp_path)])
    for seed in range(2):
        assert [file.stem for file in sorted((tmp_path / str(seed)).glob("*.png"))] == FIGURES
    assert (tmp_path / "stability.png").stat().st_size > 1000
    content = json.loads((tmp_path / "agreement.json").read_text())
    assert [run["run"] for run in content["runs"]] == ["0", "1"]
    assert content["stability"][0]["runs"] == ["0", "1"]
    assert "not drawn" not in capsys.readouterr().out


@pytest.mark.parametrize("linkage", ["complete", "official"])
def test_without_the_laboratory_the_rest_is_drawn_and_the_lack_is_told(
    linkage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The official rule's path ends where its run did; a figure of an earlier run must not pass for this one's."""
    official = {"pairs": [[0, 1]], "heights": [1.0]} if linkage == "official" else {}
    write(tmp_path, [layer(0, {}, gates=False) | official], linkage=linkage)
    (tmp_path / "mass_moved.png").write_bytes(b"\x89PNG Software\0stun-clusters")
    main([str(tmp_path)])
    assert [file.stem for file in sorted(tmp_path.glob("*.png"))] == [
        name for name in FIGURES if name not in ("agreement", "mass_moved")
    ]
    said = capsys.readouterr().out
    assert "mass_moved.png: not drawn, gates were not measured; run with expert_pruner.laboratory=true" in said
    assert "agreement.png: not drawn, no two similarities were compared; run with" in said


def test_figures_of_the_user_s_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the place of one that is drawn, and of one that is not drawn any more; drawn once more, ours give way."""
    write(tmp_path, [layer(0, {}, gates=False)])
    for name in ("mass_moved", "experts_kept"):
        (tmp_path / f"{name}.png").write_text("mine")
    main([str(tmp_path)])
    main([str(tmp_path)])
    assert [(tmp_path / f"{name}.png").read_text() for name in ("mass_moved", "experts_kept")] == ["mine"] * 2
    said = capsys.readouterr().out
    assert (
        said.count("experts_kept.png: not drawn, a file that stun-clusters has not drawn is there; move it away") == 2
    )
    assert said.count("wrote") == 2 * 4


def test_a_run_that_merged_nothing_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = {"clusters": [[0], [1], [2], [3]], "kept": [0, 1, 2, 3], "sizes": [1] * 4, "within": None}
    write(
        tmp_path,
        [layer(0, {}, gates=False) | single | {"threshold": None, "pairs": [], "heights": []}],
        linkage="official",
    )
    main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "dendrograms.png: not drawn, no merges" in said
    assert "within_cluster_distance.png: not drawn, no experts were merged" in said


def test_a_folder_without_clusters_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        main([str(tmp_path)])
    assert (
        "no clusters.json in it; give the folder of a run or sweep with expert_pruner=stun" in capsys.readouterr().err
    )


def test_a_file_of_another_is_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "agreement.json"
    file.write_text('{"mine": 1}')
    said = write_agreement([], tmp_path)
    assert "not written, a file that stun-clusters has not written is there" in said
    assert file.read_text() == '{"mine": 1}'
    file.unlink()
    assert write_agreement([], tmp_path) == write_agreement([], tmp_path) == f"wrote {file}"
