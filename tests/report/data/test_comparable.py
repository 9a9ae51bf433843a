"""Runs that may stand in one table, and those that may not."""

from collections.abc import Callable
from typing import Any

import pytest

from stun_exp.report.data.comparable import comparable_sets
from stun_exp.report.data.read import ReportedRun

Make = Callable[..., dict[str, Any]]


def runs(*reports: dict[str, Any]) -> list[ReportedRun]:
    return [ReportedRun(report, f"run{number}", None) for number, report in enumerate(reports)]


def refusal(*reports: dict[str, Any]) -> list[str]:
    with pytest.raises(ValueError, match="runs that cannot stand in one table") as caught:
        comparable_sets(runs(*reports))
    return str(caught.value).split("\n  ")[1:]


def test_seeds_methods_and_sparsities_are_one_set(make_report: Make) -> None:
    reports = [make_report(n, seed=seed, sparsity=s) for n in "ab" for seed in (0, 1) for s in (0.4, 0.65)]
    (one,) = comparable_sets(runs(*reports))
    assert one.heading == "bundled:toy_moe"
    assert one.reports == reports


def test_each_model_has_a_set_of_its_own(make_report: Make) -> None:
    """A local folder may hold another model tomorrow: its size is part of what it is."""
    grown = make_report(model="dir")
    grown["model"]["params_before"] = 7
    found = comparable_sets(runs(make_report(), make_report(model="dir"), grown))
    assert [one.heading for one in found] == ["bundled:toy_moe", "dir; 3,851,392 parameters", "dir; 7 parameters"]


def test_each_way_to_measure_has_a_set_that_says_what_is_its_own(make_report: Make) -> None:
    eight = make_report("a", 0.5, 2.0)
    eight["settings"]["eval"]["benchmarks"]["arc"]["num_fewshot"] = 8
    none = make_report(eval={"_target_": "stun_exp.evaluation.benchmarks.NoEvaluation"}) | {"metrics": {}}
    found = comparable_sets(runs(make_report("b", 0.5, 2.0), eight, none))
    assert [one.heading.split("; ")[1] for one in found] == [
        "arc (0 shots, acc,none), text (0 shots, byte_perplexity,none)",
        "arc (8 shots, acc,none), text (0 shots, byte_perplexity,none)",
        "no other benchmark",
    ]
    found = comparable_sets(runs(make_report("b", 0.5, 2.0), eight))
    assert [one.heading for one in found] == [
        "bundled:toy_moe; arc (0 shots, acc,none)",
        "bundled:toy_moe; arc (8 shots, acc,none)",
    ]


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("sparsity_scope", "experts", "sparsity_scope differs: decoder in run0; experts in run1"),
        ("eval.limit", 8, "eval.limit differs: None in run0; 8 in run1"),
        ("eval.batch_size", 1, "eval.batch_size differs: 32 in run0; 1 in run1"),
        ("eval.backend", "vllm", "eval.backend differs: hf in run0; vllm in run1"),
    ],
)
def test_a_setting_that_spoils_a_comparison_is_refused(make_report: Make, setting: str, value: Any, told: str) -> None:
    assert refusal(make_report("a"), make_report("b", **{setting: value})) == [f"bundled:toy_moe: {told}"]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("task_version", "2.0", "the version of arc differs: 1.0 in run0; 2.0 in run1"),
        ("num_fewshot", 5, "the number of shots of arc differs: 0 in run0; 5 in run1"),
        ("num_samples", 8, "the number of items of arc differs: 224 in run0; 8 in run1"),
    ],
)
def test_a_benchmark_that_was_run_in_another_way_is_refused(make_report: Make, key: str, value: Any, told: str) -> None:
    other = make_report("b")
    other["metrics"]["arc/acc,none"][key] = value
    assert refusal(make_report("a"), other) == [f"bundled:toy_moe: {told}"]


def test_a_limit_says_why_items_are_fewer(make_report: Make) -> None:
    fewer = make_report("b", **{"eval.limit": 8})
    fewer["metrics"]["arc/acc,none"]["num_samples"] = 8
    assert refusal(make_report("a"), fewer) == ["bundled:toy_moe: eval.limit differs: None in run0; 8 in run1"]


def test_everything_is_refused_at_once(make_report: Make) -> None:
    """All differences of all sets in one answer."""
    newer = make_report("b", model="x", **{"eval.limit": 2})
    newer["provenance"]["versions"]["lm-eval"] = "0.5"
    found = refusal(make_report("a"), make_report("b", **{"eval.limit": 1}), make_report("a", model="x"), newer)
    assert found == [
        "bundled:toy_moe: eval.limit differs: None in run0; 1 in run1",
        "x: eval.limit differs: None in run2; 2 in run3",
        "x: the version of lm-eval differs: 0.4.13 in run2; 0.5 in run3",
    ]


def test_other_calibration_tokens_with_one_seed_are_refused(make_report: Make) -> None:
    """Each method has its number of sequences, which no column shows: one method simply saw more text."""
    other = make_report("b", **{"calibration.num_sequences": 128})
    other["provenance"]["calibration_tokens_sha256"] = "more tokens"
    assert refusal(make_report("a"), other) == [
        "bundled:toy_moe: calibration tokens of seed 0 differ: calibration.num_sequences=64 in run0; "
        "calibration.num_sequences=128 in run1"
    ]


def test_calibration_that_was_swept_is_a_column_and_allowed(make_report: Make) -> None:
    reports = []
    for number in (64, 128):
        for name in "ab":
            report = make_report(name, **{"calibration.num_sequences": number})
            report["provenance"]["calibration_tokens_sha256"] = f"{number} sequences"
            reports.append(report)
    assert len(comparable_sets(runs(*reports))) == 1
    reports[-1]["provenance"]["calibration_tokens_sha256"] = "other text"
    assert refusal(*reports) == [
        "bundled:toy_moe: calibration tokens of seed 0, calibration.num_sequences=128 differ: others in run2; others "
        "in run3"
    ]


def test_a_run_that_is_there_twice_counts_once(make_report: Make) -> None:
    """Two sweeps may hold one point; where the tracker lies is no difference."""
    (one,) = comparable_sets(runs(make_report("a"), make_report("a", tracker={"mode": "offline"}), make_report("b")))
    assert [run.where for run in one.runs] == ["run0", "run2"]
    assert one.repeated == ["run1"]


def test_equal_settings_with_other_figures_are_refused(make_report: Make) -> None:
    assert refusal(make_report("a", 0.5), make_report("a", 0.6)) == [
        "bundled:toy_moe: run0 and run1 have equal settings, and other figures"
    ]


def test_many_runs_are_counted(make_report: Make) -> None:
    reports = [make_report(f"run {number}", sparsity_scope="experts" if number else "model") for number in range(9)]
    assert refusal(*reports) == [
        "bundled:toy_moe: sparsity_scope differs: model in run0; experts in run1, run2 and 6 more"
    ]


def made_by(report: dict[str, Any], code: dict[str, str] | None = None, **provenance: Any) -> dict[str, Any]:
    """The same run, by this code, these versions of libraries, on this machine."""
    versions = {name: provenance.pop(name) for name in ("torch", "transformers") if name in provenance}
    report["provenance"]["versions"] |= versions
    report["provenance"] |= provenance | ({} if code is None else {"code": code})
    return report


WANDA = "stun_exp.unstructured_pruner.wanda"


def test_seeds_of_one_row_that_other_code_made_are_refused(make_report: Make) -> None:
    """Seen: two seeds of Wanda, one run before and one after wanda.py was changed by hand, as 3.633 ± 2.404."""
    seeds = [made_by(make_report("Wanda", 0.5, 2.0 + 3 * seed, seed=seed), {WANDA: str(seed)}) for seed in (0, 1)]
    assert refusal(*seeds) == [f"bundled:toy_moe: {WANDA} differs within the row Wanda: 0 in run0; 1 in run1"]
    made_by(seeds[1], {WANDA: "0", "stun_exp.other": "9"})
    assert comparable_sets(runs(*seeds))[0].notes == ()


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_seeds_of_one_row_by_other_libraries_are_refused(make_report: Make, library: str) -> None:
    seeds = [made_by(make_report(seed=seed), **{library: f"2.{seed}"}) for seed in (0, 1)]
    assert refusal(*seeds) == [
        f"bundled:toy_moe: the version of {library} differs within the row STUN (OWL): 2.0 in run0; 2.1 in run1"
    ]


def test_a_repeat_by_other_code_is_refused(make_report: Make) -> None:
    """Equal figures by chance, or because the change made no difference here: nobody knows which run is meant."""
    assert refusal(*(made_by(make_report(), {WANDA: digest}) for digest in "ab")) == [
        f"bundled:toy_moe: {WANDA} differs within the row STUN (OWL): a in run0; b in run1"
    ]


def test_rows_by_other_code_or_on_other_machines_are_named(make_report: Make) -> None:
    """Each method has modules of its own, and those are no difference."""
    rows = [
        made_by(make_report("a"), {"shared": "1", "a": "2"}, torch="2.0", threads=2, processor="x"),
        made_by(make_report("b"), {"shared": "3", "b": "4"}, torch="2.1", threads=1, processor="x"),
        make_report("old"),
    ]
    (one,) = comparable_sets(runs(*rows))
    assert one.notes == (
        "Rows were made by different code: shared (1 in run0; 3 in run1); the version of torch (2.0 in run0; 2.1 in "
        "run1).",
        "Runs were made on different machines, which moves last digits: the number of threads (2 in run0; 1 in run1).",
    )


def test_reports_without_code_say_nothing_of_it(make_report: Make) -> None:
    assert comparable_sets(runs(make_report(seed=0), make_report(seed=1)))[0].notes == ()


def test_one_model_with_other_layers_is_refused(make_report: Make) -> None:
    """A report that was cut by hand; no figure of layers could hold both."""
    cut = make_report("b")
    cut["experts"] |= {"before": [16], "after": [12]}
    assert refusal(make_report("a"), cut) == ["bundled:toy_moe: the number of MoE layers differs: 2 in run0; 1 in run1"]
