"""Plans of a sweep: which settings give which, and how far they agree, by hand."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stun_exp.report.command import write_report
from stun_exp.report.data.plans import in_words, planned_runs
from stun_exp.report.data.read import ReportedRun, read_runs
from stun_exp.report.tables.plans import equal_plans_note, kept_text, plans_table
from stun_exp.utils.arrays import packed

Make = Callable[..., dict[str, Any]]
Clusters = list[list[int]]
A, B = "aaaaaaaa", "bbbbbbbb"


def staged(report: dict[str, Any], plan: str, layers: Sequence[Clusters] = (), **measured: float) -> dict[str, Any]:
    """A report with that plan, of layers with these clusters."""
    sizes = [sorted(map(len, clusters), reverse=True) for clusters in layers or [[[0, 1], [2], [3]]]]
    per_layer = [
        {"layer": number, "num_experts": sum(of_layer), "kept": len(of_layer), "cluster_sizes": of_layer}
        for number, of_layer in enumerate(sizes)
    ]
    counts = {"num_clusters": sum(map(len, sizes)), "largest_cluster": max(map(max, sizes))}
    return report | {"expert_stage": {"plan_id": plan, **counts, **measured, "per_layer": per_layer}}


def run_in(
    folder: Path,
    report: dict[str, Any],
    kept: Sequence[list[int]],
    clusters: Sequence[Clusters | None],
    distances: Mapping[str, Sequence[float]] | None = None,
) -> ReportedRun:
    """A run that left its plan, and distances if there are any."""
    folder.mkdir(parents=True)
    layers = [
        {"layer": number, "num_experts": 4, "groups": [[e] for e in experts], "kept": experts, "clusters": of_layer}
        for number, (experts, of_layer) in enumerate(zip(kept, clusters, strict=True))
    ]
    (folder / "plan.json").write_text(json.dumps({"layers": layers}))
    (folder / "report.json").write_text(json.dumps(report))
    if distances is not None:
        content = packed({name: np.float32(values) for name, values in distances.items()})
        (folder / "distances.npz").write_bytes(content)
    return ReportedRun(report, str(folder), folder)


def grid(make_report: Make, plans: Mapping[tuple[Any, ...], str], *names: str, seed: bool = False) -> list[ReportedRun]:
    """Runs whose settings, by name, have values each with its plan."""
    found = []
    for values, plan in plans.items():
        settings = {f"expert_pruner.{name}": value for name, value in zip(names, values, strict=False)}
        report = make_report("STUN", seed=values[-1] if seed else 0, **settings)
        found.append(ReportedRun(staged(report, plan), str(values), None))
    return found


def test_a_setting_without_effect_is_told(make_report: Make) -> None:
    """kappa changes nothing anywhere, lambda2 from 0.1 to 1 alone."""
    plans = {(lam, kappa): B if lam == 1.0 else A for lam in (0.0, 0.1, 1.0) for kappa in (0, 3)}
    told = in_words(planned_runs(grid(make_report, plans, "lambda2", "kappa")))
    assert told == "6 settings, 2 plans: lambda2 changes the plan (but 0.0 and 0.1 give one); kappa changes nothing."


def test_where_a_setting_has_an_effect_is_told(make_report: Make) -> None:
    plans = {(lam, kappa): f"{lam}-{kappa if lam else 0}" for lam in (0.0, 0.1, 1.0) for kappa in (0, 3)}
    told = in_words(planned_runs(grid(make_report, plans, "lambda2", "kappa")))
    assert told == (
        "6 settings, 5 plans: lambda2 changes the plan; kappa changes nothing at lambda2=0.0, changes the plan at "
        "lambda2=0.1 and 1.0."
    )


def test_an_effect_that_follows_no_other_setting_is_counted(make_report: Make) -> None:
    """Of x, y and z, x alone of three decides in one of four corners."""
    plans = {(x, y, z): B if (x, y, z) == (1, 1, 1) else A for x in (0, 1) for y in (0, 1) for z in (0, 1)}
    told = in_words(planned_runs(grid(make_report, plans, "x", "y", "z")))
    assert told.startswith("8 settings, 2 plans: x changes the plan in 1 of 4 comparisons;")


def test_nothing_is_said_of_settings_that_never_differ_alone(make_report: Make) -> None:
    told = in_words(planned_runs(grid(make_report, {(0.0, 0): A, (1.0, 3): B}, "lambda2", "kappa")))
    assert told == "2 settings, 2 plans."


def test_a_seed_is_a_setting(make_report: Make) -> None:
    told = in_words(planned_runs(grid(make_report, {(0.0, 0): A, (0.0, 1): A}, "lambda2", seed=True)))
    assert told == "2 settings, 1 plan: seed changes nothing."


def test_methods_are_compared_too(make_report: Make) -> None:
    runs = [ReportedRun(staged(make_report(name), plan), name, None) for name, plan in (("a", A), ("b", B))]
    assert in_words(planned_runs(runs)) == "2 settings, 2 plans: method changes the plan."


def test_a_ratio_is_a_setting_though_results_show_what_it_led_to(make_report: Make) -> None:
    planned = planned_runs(grid(make_report, {(0.2,): A, (0.1,): B}, "ratio"))
    assert sorted(list(run.settings.items()) for run in planned) == [[("ratio", "0.1")], [("ratio", "0.2")]]


def test_what_comes_after_the_experts_makes_no_row(make_report: Make) -> None:
    """Two sparsities of one plan are one; a run without an expert stage, or of an older version, is none."""
    reports = [staged(make_report("STUN", sparsity=sparsity), A) for sparsity in (0.4, 0.5)]
    reports += [make_report("Wanda", **{"expert_pruner.lambda2": 9.0}) | {"expert_stage": None}, make_report("old")]
    (planned,) = planned_runs([ReportedRun(report, str(place), None) for place, report in enumerate(reports)])
    assert planned.plan_id == A


def test_a_row_by_hand(make_report: Make, tmp_path: Path) -> None:
    """Kept 0 2 3 and 0 1, against 0 1 3 and 0 1: 4 of 5. Of 4 experts, 3 and 2 at random share (9 + 4) / 4 of 5.

    Clusters {01}{2}{3} and {0}{1}{23} have index -0.2, {02}{13} with itself 1: mean 0.4. Distances of layer 0 run
    backwards (-1), those of layer 1 as before (1).
    """
    first, other = [[0, 1], [2], [3]], [[0], [1], [2, 3]]
    same = [[0, 2], [1, 3]]
    up, down = [1.0, 2, 3, 4, 5, 6], [6.0, 5, 4, 3, 2, 1]
    reports = [
        staged(make_report("STUN"), A, [first, same], reconstruction_error=0.5, gate_mass_moved=0.125),
        staged(make_report("STUN", **{"expert_pruner.lambda2": 1.0}), B, [other, same]),
    ]
    runs = [
        run_in(tmp_path / "a", reports[0], [[0, 2, 3], [0, 1]], [first, same], {"0": up, "1": up}),
        run_in(tmp_path / "b", reports[1], [[0, 1, 3], [0, 1]], [other, same], {"0": down, "1": up}),
    ]
    table = plans_table(planned_runs(runs))
    assert table.columns == [
        *("row", "lambda2", "plan", "clusters", "largest cluster", "experts kept", "reconstruction error"),
        *("gate mass moved", "kept in common", "cluster ARI", "distance correlation"),
    ]
    assert table.rows == [
        ["1", "0.0", A, "5", "2", "3 2", "0.5000", "12.5 %", "-", "-", "-"],
        ["2", "1.0", B, "5", "2", "3 2", "-", "-", "80.0 %", "0.400", "0.000"],
    ]
    assert "two random choices of as many as row 1 keeps would share 65 %" in table.notes[0]


def test_an_equal_plan_is_marked_by_the_first_row_that_has_it(make_report: Make) -> None:
    plans = {(0.0, 0): A, (0.0, 3): B, (1.0, 0): B, (1.0, 3): A}
    planned = planned_runs(grid(make_report, plans, "lambda2", "kappa"))
    table = plans_table(planned)
    place = table.columns.index("plan")
    assert [row[place] for row in table.rows] == [A, B, f"{B} (= row 2)", f"{A} (= row 1)"]
    assert equal_plans_note(planned) == (
        "Equal expert plans: STUN (lambda2=0.0, kappa=0) = STUN (lambda2=1.0, kappa=3); "
        "STUN (lambda2=0.0, kappa=3) = STUN (lambda2=1.0, kappa=0)."
    )
    assert equal_plans_note(planned[:2]) == ""


def test_without_files_only_equal_plans_are_known_to_agree(make_report: Make) -> None:
    table = plans_table(planned_runs(grid(make_report, {(0.0,): A, (0.5,): A, (1.0,): B}, "lambda2")))
    assert [row[-3:] for row in table.rows] == [["-"] * 3, ["100.0 %", "-", "-"], ["-"] * 3]
    assert table.notes[1].startswith("Not compared for want of a plan.json that can be read: STUN (lambda2=0.0); ")


@pytest.mark.parametrize(
    ("plan", "distances"),
    [
        ("{", b"PK"),
        ('{"layers": 3}', b""),
        ('{"layers": [{"layer": 0, "num_experts": 4, "groups": [], "kept": "x"}]}', b"mine"),
        ('{"layers": []}', packed({"0": np.float32([np.nan, 1])})),
        ("[]", packed({"0": np.array(["x"])})),
        (
            '{"layers": [{"layer": 1, "num_experts": 1000000000000000000, "groups": [[0]], "kept": []}]}',
            packed({"0": np.float32([1, 2])}),
        ),
    ],
)
def test_damaged_files_leave_a_dash(make_report: Make, tmp_path: Path, plan: str, distances: bytes) -> None:
    for name, lam in (("a", 0.0), ("b", 1.0)):
        report = staged(make_report("STUN", **{"expert_pruner.lambda2": lam}), name)
        run_in(tmp_path / name, report, [[0, 2, 3]], [[[0, 1], [2], [3]]], {"0": [1, 2, 3, 4, 5, 6]})
    good = plans_table(planned_runs(read_runs([tmp_path]).runs))
    assert good.rows[1][-3:] == ["100.0 %", "1.000", "1.000"]
    (tmp_path / "b" / "plan.json").write_text(plan)
    assert plans_table(planned_runs(read_runs([tmp_path]).runs)).rows[1][-3:-1] == ["-", "-"]
    (tmp_path / "b" / "plan.json").write_bytes((tmp_path / "a" / "plan.json").read_bytes())
    (tmp_path / "b" / "distances.npz").write_bytes(distances)
    assert plans_table(planned_runs(read_runs([tmp_path]).runs)).rows[1][-3:] == ["100.0 %", "1.000", "-"]


def test_methods_that_leave_experts_out_have_no_clusters_to_compare(make_report: Make, tmp_path: Path) -> None:
    clustered = staged(make_report("STUN"), A)
    scored = staged(make_report("reap", **{"expert_pruner.lambda2": 1.0}), B)
    runs = [
        run_in(tmp_path / "a", clustered, [[0, 2, 3]], [[[0, 1], [2], [3]]]),
        run_in(tmp_path / "b", scored, [[1, 2, 3]], [None]),
    ]
    assert plans_table(planned_runs(runs)).rows[1][-3:] == ["66.7 %", "-", "-"]


@pytest.mark.parametrize(
    ("counts", "text"),
    [([26, 25, 26, 26], "26 25 26 26"), ([5] * 9, "5"), ([7, *[5] * 8], "5-7")],
)
def test_many_layers_are_a_range(counts: list[int], text: str) -> None:
    assert kept_text(counts) == text


def test_a_sweep_without_benchmarks_prints_its_plans(
    make_report: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With benchmarks the results are what is printed, and a note below them marks equal plans."""
    monkeypatch.setattr("stun_exp.report.figures.draw.draw_figures", lambda *_: [])
    for name, metrics in (("bare", False), ("measured", True)):
        for kappa in (0, 3):
            report = staged(make_report("STUN", **{"expert_pruner.kappa": kappa}), A)
            report = report if metrics else report | {"metrics": {}}
            run_in(tmp_path / name / str(kappa), report, [[0, 2, 3]], [[[0, 1], [2], [3]]])
        write_report([tmp_path / name], tmp_path / f"out-{name}")
        said, page = capsys.readouterr().out, (tmp_path / f"out-{name}/report.md").read_text()
        assert "plans\n\n2 settings, 1 plan: kappa changes nothing.\n\n| row | kappa | plan |" in page
        assert (tmp_path / f"out-{name}/tables/toy_moe-plans.csv").is_file()
        assert ("2 settings, 1 plan: kappa changes nothing." in said) is not metrics
        assert ("Equal expert plans: STUN (kappa=0) = STUN (kappa=3)." in said) is metrics
