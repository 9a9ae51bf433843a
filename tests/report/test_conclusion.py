"""What is said of runs in words, worked by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import benchmark, figure

from stun_exp.report.conclusion import conclusion
from stun_exp.report.data.comparable import comparable_sets
from stun_exp.report.data.facts import facts, shared_settings
from stun_exp.report.data.points import points
from stun_exp.report.data.read import read_runs

Make = Callable[..., dict[str, Any]]
RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture
def run(make_report: Make) -> Make:
    """(name, task -> accuracy in percent, ...) -> a run with those benchmarks; each figure has an error of 2.5."""

    def make(name: str, accuracies: dict[str, float], **rest: Any) -> dict[str, Any]:
        report = make_report(name, **rest)
        report["settings"]["eval"]["benchmarks"] = {task: benchmark(task, "acc,none") for task in accuracies}
        report["metrics"] = {f"{task}/acc,none": figure(value / 100, 0.025) for task, value in accuracies.items()}
        return report

    return make


def test_the_best_and_those_near_it_and_those_that_are_neither(run: Make) -> None:
    """Errors of 2.5 points make one of 3.54 for a difference: 3 below the best is near it, 4 is not. Mean of a: 60."""
    reports = [
        run("a", {"x": 80.0, "y": 40.0}),
        run("b", {"x": 77.0, "y": 50.0}),
        run("c", {"x": 76.0, "y": 46.0}),
    ]
    assert conclusion(reports, {}) == [
        "At 40 % sparsity a is best on 1 of 2 (x); b on 1 of 2 (y). "
        "Highest mean accuracy over 2 benchmarks: b, 63.5 %. "
        "Within one standard error of the best (no paired test): b on x. "
        "Neither best nor that near on any benchmark: c."
    ]


def test_paired_tests_say_what_is_noise_where_there_are_any(run: Make) -> None:
    """b is 20 points behind on x, and its test tells them apart by luck alone; c is 1 behind and surely worse."""
    reports = [run("a", {"x": 80.0}), run("b", {"x": 60.0}), run("c", {"x": 79.0})]
    a, b, c = (point.places for point in points(reports))
    p_values = {("x/acc,none", frozenset((a, b))): 0.05, ("x/acc,none", frozenset((a, c))): 0.049}
    assert conclusion(reports, p_values) == [
        "At 40 % sparsity a is best on x. Highest accuracy: a, 80.0 %. "
        "Within noise of the best (paired tests on the same items, p at least 0.05): b on x. "
        "Neither best nor that near on any benchmark: c."
    ]


def test_each_sparsity_has_its_own_best_beside_the_unpruned_model(run: Make) -> None:
    reports = [
        run(name, {"arc": value}, sparsity=sparsity, baseline=0.9)
        for name, value, sparsity in (("a", 70.0, 0.4), ("b", 50.0, 0.4), ("a", 30.0, 0.65), ("b", 45.0, 0.65))
    ]
    first, second = conclusion(reports, {})
    assert first.startswith("At 40 % sparsity a is best on arc. Highest accuracy: a, 70.0 % (unpruned 90.0 %).")
    assert second.startswith("At 65 % sparsity b is best on arc. Highest accuracy: b, 45.0 % (unpruned 90.0 %).")


def test_nobody_wins_at_chance(run: Make) -> None:
    """Of four answers a guess is right in 25 %: 27.4, with an error of 2.5, is no more than that. 27.6 is."""
    reports = [run("a", {"mmlu": 27.4}), run("b", {"mmlu": 20.0})]
    assert conclusion(reports, {})[0].startswith("At 40 % sparsity no row is above chance on mmlu.")
    reports = [run("a", {"mmlu": 27.6, "boolq": 52.0}), run("b", {"mmlu": 27.0, "boolq": 40.0})]
    (told,) = conclusion(reports, {})
    assert told.startswith("At 40 % sparsity a is best on 1 of 2 (mmlu).")
    assert "No row is above chance on boolq." in told
    assert told.endswith("Neither best nor that near on any benchmark: b.")


def test_those_that_tie_are_both_best(run: Make) -> None:
    (told,) = conclusion([run("a", {"x": 50.0, "y": 60.0}), run("b", {"x": 50.0, "y": 40.0})], {})
    assert told.startswith("At 40 % sparsity a is best on 2 of 2 (x (tied), y); b on 1 of 2 (x (tied)).")
    assert "Neither" not in told


def test_one_run_alone_is_compared_with_nothing(run: Make) -> None:
    (told,) = conclusion([run("a", {"arc": 50.0, "y": 60.0})], {})
    assert told == (
        "At 40 % sparsity there is a alone, with nothing to compare it with. "
        "Its mean accuracy over 2 benchmarks is 55.0 %."
    )


def test_runs_without_benchmarks_say_nothing_of_quality(make_report: Make) -> None:
    bare = [
        make_report(name, sparsity=s, eval={"_target_": "none"}) | {"metrics": {}}
        for name, s in (("a", 0.4), ("b", 0.65))
    ]
    assert conclusion(bare, {}) == [
        "No benchmark was run, so nothing is known of quality. Pruned to 40 %, 65 % sparsity: a, b."
    ]


def test_an_unpruned_model_alone_is_said_to_be_that(run: Make) -> None:
    untouched = run("dense", {"x": 50.0}, sparsity=0.0)
    untouched["experts"]["ratio"] = 0.0
    assert conclusion([untouched], {}) == ["Nothing was pruned: these are figures of the model as it was."]


def test_the_lowest_perplexity_is_the_best(make_report: Make) -> None:
    (told,) = conclusion([make_report("a", 0.5, 3.0), make_report("b", 0.5, 2.0)], {})
    assert told.startswith("At 40 % sparsity b is best on 2 of 2 (arc (tied), text); a on 1 of 2 (arc (tied)).")


def test_rows_that_differ_by_their_experts_alone_are_told_apart(run: Make) -> None:
    reports = [run("a", {"x": value}, **{"expert_pruner.ratio": ratio}) for ratio, value in ((0.1, 50.0), (0.3, 30.0))]
    for report, ratio in zip(reports, (0.1, 0.3), strict=True):
        report["experts"]["ratio"] = ratio
    (told,) = conclusion(reports, {})
    assert told.startswith("At 40 % sparsity a with 10.0 % of the experts removed is best on x.")


def test_many_are_counted(run: Make) -> None:
    """Ten that win nothing: six are named."""
    reports = [run("best", {"x": 90.0}), *(run(f"m{number}", {"x": 20.0}) for number in range(10))]
    (told,) = conclusion(reports, {})
    assert told.endswith("Neither best nor that near on any benchmark: m0, m1, m2, m3, m4, m5 and 4 more.")


def test_every_kept_list_of_reports_has_a_conclusion_and_facts() -> None:
    """They are of several versions."""
    told = {}
    for name in ("demo", "expert_pruners", "recovery", "toy_arctic", "weights_24", "weights_65"):
        for one in comparable_sets(read_runs([RESULTS / f"{name}.json"]).runs):
            told[name] = conclusion(one.reports, {})
            assert {"model", "calibration", "benchmarks", "versions", "commit"} <= facts(one.runs).keys()
            assert shared_settings(one.reports)
    assert len(told) == 6
    assert all(line.startswith("At ") and " is best on " in line for lines in told.values() for line in lines)
