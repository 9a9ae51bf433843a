"""Tables from reports alone."""

from collections.abc import Callable
from typing import Any

import pytest
from report_fixtures import stage

from stun_exp.report.data.points import points
from stun_exp.report.tables.results import CHARGED, results_table
from stun_exp.report.tables.table import Cell, ResultsTable
from stun_exp.report.tables.view import view

Make = Callable[..., dict[str, Any]]
COST = ["calibration passes", "selection (s)", "peak GiB", "total (s)"]


def bold(table: ResultsTable, column: str) -> list[str]:
    """Names of the methods that are bold in a column."""
    place = table.columns.index(column)
    return [row[0].text for row in table.cells if row[place].bold]


def test_a_row_by_hand(make_report: Make) -> None:
    """The peak is that of pruning: evaluating loads the whole model, which pruning need not.

    Selection took 0.01 s, because the cache had what takes 0.26 s: that is what methods are compared by.
    """
    table = results_table([make_report("STUN", 0.8125, 1.23456, sparsity=0.40004)])
    assert table.columns[3:] == ["arc (acc)", "text (byte_perplexity)", *COST]
    assert table.rows == [["STUN", "20.3 %", "40.00 %", "81.2 ± 2.5", "1.235", "16", "0.3", "1.25", "6"]]
    assert table.cells[0][3] == Cell("81.2 ± 2.5", 81.25, 2.5)
    assert table.notes == (CHARGED,)


@pytest.mark.parametrize(
    ("passes", "shown"),
    [(0.0, "0"), (1.0, "1"), (3 * (16 / 3), "16"), (4.75, "4.8"), (1 + 2 / 3, "1.7"), (0.97, "1.0")],
)
def test_passes_are_whole_or_have_one_decimal(make_report: Make, passes: float, shown: str) -> None:
    """0.97 of a pass is not shown as one whole pass."""
    one = make_report()
    one["cost"]["experts"]["forward_passes"] = passes
    assert results_table([one]).rows[0][4] == shown


def test_the_peak_is_the_device_s_where_there_is_one(make_report: Make) -> None:
    """Host memory is then mostly the libraries, and larger."""
    one = make_report()
    one["cost"] = {"experts": stage(1, 8.0, 0.5), "prune": stage(1, 9.0, 2.5), "evaluate": stage(1, 1.0, 7.0)}
    assert results_table([one]).rows[0][6] == "2.50"


def test_what_the_expert_stage_costs_is_a_column_where_a_run_measured_it(make_report: Make) -> None:
    """The mean over seeds, in the order of the columns; its memory is not the method's."""
    first, second, without = make_report("a"), make_report("a"), make_report("b")
    second["seed"] = 1
    first["expert_stage"] = {"reconstruction_error": 0.2, "gate_mass_moved": 0.1}
    second["expert_stage"] = {"reconstruction_error": 0.4, "gate_mass_moved": 0.2}
    stage = next(iter(first["cost"].values()))
    first["cost"] = {"damage": stage | {"peak_host_gib": 99.0, "peak_device_gib": None}, **first["cost"]}
    table = results_table([first, second, without])
    column = {name: [row[place] for row in table.rows] for place, name in enumerate(table.columns)}
    assert column["reconstruction error"] == ["0.300", "-"]
    assert column["gate mass moved"] == ["15.0 %", "-"]
    assert "99.00" not in column["peak GiB"]
    assert {"reconstruction error", "gate mass moved"} <= table.folded
    assert "gate mass moved" not in results_table([without]).columns


def test_skipped_is_a_column_only_where_a_run_skips(make_report: Make) -> None:
    """Runs with eval=none have no share: a dash."""
    skipping = {"calibration": 0.25, "evaluation": 0.2449, "per_layer": []}
    off, on, bare = make_report("a"), make_report("b"), make_report("c")
    on["skipping"], bare["skipping"] = skipping, skipping | {"evaluation": None}
    table = results_table([off, on, bare])
    assert table.columns[3:5] == ["skipped", "arc (acc)"]
    assert [row[3] for row in table.rows] == ["-", "24.5 %", "-"]
    assert "skipped" not in results_table([off]).columns


def test_a_benchmark_that_one_run_lacks_is_a_dash_there(make_report: Make) -> None:
    table = results_table([make_report("a"), make_report("b", 0.5, 2.0)])
    assert [row[4] for row in table.rows] == ["-", "2.000"]


def test_no_benchmark_is_a_table_all_the_same(make_report: Make) -> None:
    bare = make_report(eval={"_target_": "stun_exp.evaluation.benchmarks.NoEvaluation"}) | {"metrics": {}}
    assert results_table([bare]).columns == ["method", "experts removed", "total sparsity", *COST]


def test_seeds_are_one_row_and_settings_have_columns(make_report: Make) -> None:
    """Accuracies 50, 60: mean 55, sd 7.07, error 5. The peak is the largest, the times are means."""
    reports = [make_report("STUN", 0.5 + 0.1 * seed, seed=seed, **{"expert_pruner.kappa": 3}) for seed in (0, 1)]
    reports.append(make_report("STUN", 0.7, **{"expert_pruner.kappa": 0}))
    reports[1]["cost"]["prune"]["peak_host_gib"] = 2.0
    table = results_table(reports)
    assert table.columns[:3] == ["method", "kappa", "seeds"]
    assert table.rows == [
        ["STUN", "0", "1", "20.3 %", "40.00 %", "70.0 ± 2.5", "16", "0.3", "1.25", "6"],
        ["STUN", "3", "2", "20.3 %", "40.00 %", "55.0 ± 5.0", "16", "0.3", "2.00", "6"],
    ]
    assert "calibration text alone" in table.notes[0]


def test_best_is_bold_with_all_that_noise_does_not_tell_from_it(make_report: Make) -> None:
    """Each has an error of 2.5 points, a difference one of 3.54: 3.5 below the best is within it, 3.6 is not."""
    table = results_table(
        [make_report("best", 0.8), make_report("near", 0.765), make_report("far", 0.764), make_report("low", 0.1)]
    )
    assert bold(table, "arc (acc)") == ["best", "near"]


def test_paired_tests_decide_what_is_bold_where_there_are_any(make_report: Make) -> None:
    """20 points behind and not significant; 1 behind and significant; without a test its standard error decides."""
    figures = {"best": 0.8, "luck": 0.6, "worse": 0.79, "near": 0.79, "far": 0.6}
    reports = [make_report(name, value) for name, value in figures.items()]
    places = {point.name: point.places for point in points(reports)}
    p = {
        ("arc/acc,none", frozenset((places["best"], places[name]))): p for name, p in (("luck", 0.05), ("worse", 0.04))
    }
    table = results_table(reports, p)
    assert bold(table, "arc (acc)") == ["best", "luck", "near"]
    assert table.notes[0] == (
        "Bold, among rows of one sparsity: the best and what its paired test on the same items does not tell from it "
        "(p at least 0.05) and what, where there is no test, lies within one standard error of the difference from it "
        "(over items and seeds)."
    )


def test_nothing_at_chance_is_bold(make_report: Make) -> None:
    """28 is a standard error above 25 and more, 27 is not: it is no better than guessing, though near the best."""
    reports = [make_report(name, value) for name, value in (("a", 0.28), ("b", 0.27), ("c", 0.2))]
    for report in reports:
        report["settings"]["eval"]["benchmarks"]["arc"]["task"] = "toy_arc"
        report["metrics"]["toy_arc/acc,none"] = report["metrics"].pop("arc/acc,none")
    table = results_table(reports)
    assert bold(table, "toy_arc (acc)") == ["a"]
    assert table.notes[0] == "Chance level: toy_arc 25 %. What is not a standard error above it is not bold."
    assert bold(results_table(reports[1:]), "toy_arc (acc)") == []


def test_nobody_is_best_with_none_right(make_report: Make) -> None:
    """A benchmark without choices has no chance level, and 0 % is no win all the same."""
    table = results_table([make_report("a", 0.0, stderr=0.0), make_report("b", 0.0, stderr=0.0)])
    assert bold(table, "arc (acc)") == []


def test_a_perplexity_that_exploded_is_shown_by_its_order_of_magnitude(make_report: Make) -> None:
    values = (9999.0, 10_000.4, 123_456_789.0)
    table = results_table([make_report(str(value), 0.5, value) for value in values])
    assert [row[4] for row in table.rows] == ["9999.000", "1.0e+04", "1.2e+08"]
    assert table.cells[2][4].value == 123_456_789.0


def test_a_page_groups_rows_by_sparsity_and_folds_their_costs(make_report: Make) -> None:
    """Where the counted sparsity is not the requested one, its column stays in sight."""
    reports = [make_report(name, sparsity=s, baseline=0.9) for name, s in (("a", 0.4), ("b", 0.4), ("a", 0.65))]
    shown = view(results_table(reports))
    assert [heading for heading, _ in shown.main.groups] == ["", "Total sparsity 40 %", "Total sparsity 65 %"]
    assert shown.shared == "In all rows but unpruned: experts removed 20.3 %."
    assert shown.main.columns == ("method", "arc (acc)")
    assert shown.folded is not None
    assert shown.folded.columns == ("method", *COST)
    reports[0]["sparsity"]["achieved"] = 0.38
    shown = view(results_table(reports))
    assert shown.main.columns == ("method", "total sparsity", "arc (acc)")
    assert shown.main.groups[1][0] == "Total sparsity 40 % requested"


def test_points_compete_with_those_of_their_own_sparsity(make_report: Make) -> None:
    """A model at 40 % beats any at 65 %, which says nothing; nor is anything best alone."""
    runs = (("a", 0.9, 0.4), ("b", 0.8, 0.4), ("c", 0.2, 0.65), ("d", 0.4, 0.65), ("e", 0.1, 0.5))
    table = results_table([make_report(name, accuracy, sparsity=sparsity) for name, accuracy, sparsity in runs])
    assert bold(table, "arc (acc)") == ["a", "d"]


def test_the_lowest_perplexity_is_best_and_a_benchmark_without_errors_has_one_best(make_report: Make) -> None:
    table = results_table([make_report("a", 0.5, 2.0), make_report("b", 0.5, 1.9), make_report("c", 0.5, float("nan"))])
    assert bold(table, "text (byte_perplexity)") == ["b"]


def test_the_unpruned_row_is_outside_the_competition(make_report: Make) -> None:
    """It would win always, over models that only skip experts as well. Its cost beside a run is not known."""
    skips = {"experts": {"ratio": 0.0}, "skipping": {"evaluation": 0.2}}
    table = results_table([make_report(n, a, sparsity=0.0, baseline=0.99) | skips for n, a in (("a", 0.5), ("b", 0.1))])
    assert table.rows[0] == ["unpruned", "0.0 %", "0.00 %", "-", "99.0 ± 1.0", "-", "-", "-", "-"]
    assert bold(table, "arc (acc)") == ["a"]


def test_unpruned_figures_that_differ_are_told(make_report: Make) -> None:
    """Measured on two machines, for instance; only one of them can have the row."""
    table = results_table([make_report("a", baseline=0.99), make_report("b", baseline=0.98)])
    assert table.rows[0][3] == "99.0 ± 1.0"
    assert "not all runs have the same figures" in table.notes[-1]


def test_errors_over_the_items_count_in_the_competition_too(make_report: Make) -> None:
    """Two methods that see no text have no error over seeds; 1 point of 224 items is luck all the same."""
    reports = [make_report(name, a, seed=seed) for name, a in (("a", 0.50), ("b", 0.51)) for seed in (0, 1)]
    table = results_table(reports)
    assert [row[4] for row in table.rows] == ["50.0 ± 0.0", "51.0 ± 0.0"]
    assert bold(table, "arc (acc)") == ["a", "b"]


def test_markdown_is_a_table(make_report: Make) -> None:
    """A bar in a name would begin a cell."""
    text = results_table([make_report("a|b", 0.5), make_report("c", 0.1)]).markdown()
    table, note, _ = text.split("\n\n", 2)
    lines = [line.replace(r"\|", "") for line in table.splitlines()]
    assert lines[1].startswith("| --- |")
    assert len({line.count("|") for line in lines}) == 1
    assert "| **50.0 ± 2.5** |" in lines[2]
    assert note.startswith("Bold")


def test_a_table_is_printed_with_its_notes(capsys: pytest.CaptureFixture[str]) -> None:
    ResultsTable(["method"], [[Cell("STUN [best]", bold=True)]], ("A note.",)).show()
    assert "STUN [best]" in (out := capsys.readouterr().out)
    assert "A note." in out


def test_a_column_of_words_with_a_gap_holds_no_numbers() -> None:
    rows = [[Cell("unpruned"), Cell("-"), Cell("-")], [Cell("STUN"), Cell("average"), Cell("2.0", 2.0)]]
    assert ResultsTable(["method", "linkage", "passes"], rows).numeric == [False, False, True]


def test_parts_of_a_dense_model_are_a_column_in_the_place_of_experts(make_report: Make) -> None:
    """What selecting them cost is counted with it; beside mixtures both columns are there."""
    dense, mixture = make_report("FLAP", sparsity=0.5), make_report("STUN", sparsity=0.5, model="bundled:other")
    dense["experts"] = {"before": [], "after": [], "ratio": 0.0}
    dense["structure"] = {"share_removed": 0.051}
    dense["cost"]["structure"] = stage(2.0, 0.5, passes=1.0)
    dense["cost"]["experts"] = stage(0.0, 0.5)
    table = results_table([dense])
    assert table.columns[1:3] == ["parts removed", "total sparsity"]
    assert table.rows[0][1:3] == ["5.1 %", "50.00 %"]
    assert table.rows[0][table.columns.index("calibration passes")] == "1"
    assert table.rows[0][table.columns.index("selection (s)")] == "2.0"
    both = results_table([dense, mixture])
    assert both.columns[1:4] == ["experts removed", "parts removed", "total sparsity"]
    assert sorted(row[1:3] for row in both.rows) == [["0.0 %", "5.1 %"], ["20.3 %", "0.0 %"]]
