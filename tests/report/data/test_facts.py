"""What runs have in common and where they are from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from stun_exp.report.data.facts import facts, shared_settings
from stun_exp.report.data.read import ReportedRun

Make = Callable[..., dict[str, Any]]


def listed(*reports: dict[str, Any]) -> list[ReportedRun]:
    return [ReportedRun(report, f"runs.json[{number}]", None) for number, report in enumerate(reports)]


def test_facts_are_those_of_the_reports(make_report: Make) -> None:
    report = make_report(choices={"experiment": "toy/stun_table2"})
    report["provenance"] |= {"git_commit": "abc", "device": "cpu", "processor": "EPYC", "threads": 2}
    report["provenance"]["versions"] |= {"torch": "2.13", "datasets": "5"}
    assert facts(listed(report)) == {
        "model": "bundled:toy_moe: 3,851,392 parameters, 2 MoE layers of 16 experts, float32",
        "calibration": "toy, num_sequences=64",
        "benchmarks": "arc (0 shots)",
        "pack's command": "stun -m experiment=toy/stun_table2",
        "versions": "torch 2.13, lm-eval 0.4.13",
        "commit": "abc",
        "machine": "cpu, EPYC, 2 threads",
    }


def test_facts_that_no_report_states_are_left_out(make_report: Make) -> None:
    """Reports of older versions."""
    report = make_report()
    del report["choices"], report["settings"]["model"]
    assert set(facts(listed(report))) == {"model", "calibration", "benchmarks", "versions"}


def test_how_alike_the_experts_are_is_a_fact_where_it_was_measured(make_report: Make) -> None:
    report = make_report()
    report["redundancy"] = {"nearest_weight_cosine": 0.951, "effective_experts": 14.96, "load_gini": None}
    told = facts(listed(report))["redundancy"]
    assert told == "experts and the nearest other: weights' cosine 0.95, 15.0 effective experts a layer"


def test_facts_that_differ_are_all_named_up_to_three(make_report: Make) -> None:
    reports = [make_report() for _ in range(5)]
    for report, commit in zip(reports, "aabcd", strict=True):
        report["provenance"]["git_commit"] = commit
    assert facts(listed(*reports))["commit"] == "a; b; c; and 1 more"


def test_a_sweep_s_command_is_the_one_that_hydra_noted(make_report: Make, tmp_path: Path) -> None:
    """Once, though each run lies below it, those of several sparsities a folder deeper."""
    overrides = {"hydra": {"overrides": {"task": ["experiment=demo", "name='a b'"]}}}
    (tmp_path / "multirun.yaml").write_text(yaml.safe_dump(overrides))
    folders = [tmp_path / "one", tmp_path / "two" / "0.4"]
    for folder in folders:
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text("- experiment=demo\n- name=x\n")
        (folder / "report.json").touch()
    runs = [ReportedRun(make_report(), str(folder), folder) for folder in folders]
    found = facts(runs)
    assert found["command"] == """stun -m experiment=demo 'name='"'"'a b'"'"''"""
    assert len(found["reports written"]) == len("2026-01-01")
    (tmp_path / "multirun.yaml").unlink()
    assert facts(runs[:1])["command"] == "stun experiment=demo name=x"


def test_a_damaged_note_of_the_command_is_no_command(make_report: Make, tmp_path: Path) -> None:
    for content in ("{", "a", "hydra: 3", "[]", "hydra: {overrides: {task: x}}"):
        (tmp_path / "multirun.yaml").write_text(content)
        assert "command" not in facts([ReportedRun(make_report(), "x", tmp_path)])


def test_shared_settings_are_the_same_in_all_runs(make_report: Make) -> None:
    """lambda2 differs, so it is not shared; model and calibration are facts."""
    reports = [make_report(**{"expert_pruner.lambda2": value}) for value in (0.0, 1.0)]
    assert shared_settings(reports) == {"sparsity": "0.4", "sparsity_scope": "decoder", "expert_pruner": "ratio=0.2"}
