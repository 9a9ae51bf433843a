"""One damaged report beside good ones: it is used or named, and never the end of the others' tables."""

import json
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from stun_exp.report.command import _parts, write_report
from stun_exp.report.conclusion import conclusion
from stun_exp.report.data.comparable import ComparableSet, comparable_sets
from stun_exp.report.data.facts import facts, shared_settings
from stun_exp.report.data.read import ReportedRun, read_runs
from stun_exp.report.data.schema import why_unusable
from stun_exp.report.figures.draw import draw_figures
from stun_exp.report.tables.significance import paired_tests
from stun_exp.report.tables.view import view
from stun_exp.utils.json_files import strict, with_numbers

Make = Callable[..., dict[str, Any]]
DELETED = object()
WRONG: tuple[Any, ...] = (
    DELETED, None, True, -1, 10**400, 1e308, nan, inf, "x", "NaN", "\ud800", [], [None], {}, {"x": {"y": []}},
)  # fmt: skip


def nodes(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from nodes(value, (*path, key))


def changed(report: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    found = deepcopy(report)
    node: Any = found
    for step in place[:-1]:
        node = node[step]
    if value is DELETED:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return found


def full(make_report: Make) -> dict[str, Any]:
    """A report with all that a report may have."""
    report = make_report("mutant", 0.5, 2.0, baseline=0.7)
    report["skipping"] = {"evaluation": 0.1, "calibration": None}
    layer = {"layer": 0, "num_experts": 4, "kept": 2, "cluster_sizes": [3, 1], "reconstruction_error": 0.5}
    report["expert_stage"] = {"plan_id": "0123abcd", "num_clusters": 2, "largest_cluster": 3, "per_layer": [layer]}
    report["expert_stage"] |= {"reconstruction_error": 0.5, "gate_mass_moved": 0.25}
    report["redundancy"] = {"nearest_weight_cosine": 0.9}
    report["provenance"] |= {"code": {"a.b": "0123456789abcdef"}, "threads": 2, "processor": "cpu"}
    report["provenance"] |= {"git_commit": "0123", "device": "cpu"}
    report["settings"]["model"] |= {"parameters": 3_851_392, "expert_ratio": 0.2, "dimensions": {"hidden_size": 8}}
    report["settings"]["eval"]["benchmarks"]["arc"]["include"] = None
    return report


def mutants(make_report: Make) -> Iterator[tuple[str, dict[str, Any]]]:
    report = full(make_report)
    for place in nodes(report):
        for value in WRONG:
            yield f"{'.'.join(map(str, place))}={value!r:.20}", changed(report, place, value)


def sets_or_refusal(runs: list[ReportedRun]) -> tuple[list[ComparableSet], str]:
    try:
        return comparable_sets(runs), ""
    except ValueError as refusal:
        return [], str(refusal)


def test_a_report_that_is_wrong_in_one_place_is_used_or_named(
    make_report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named: as damaged, or in the refusal of runs that may not be compared. Figures are drawn, and not rendered."""
    monkeypatch.setattr("stun_exp.report.figures.style.rendered", lambda figure: (b"", ""))
    good = [full(make_report) | {"name": name} for name in ("good", "better")]
    used = named = 0
    for number, (what, mutant) in enumerate(mutants(make_report)):
        why = why_unusable(mutant)
        if why is not None:
            assert why.startswith(("damaged, ", "a report of schema", "a report before")), what
            named += 1
            continue
        runs = [ReportedRun(with_numbers(report), f"run{place}", None) for place, report in enumerate([*good, mutant])]
        sets, refusal = sets_or_refusal(runs)
        assert sets or "run2" in refusal, what
        named += not sets
        used += bool(sets)
        for one in sets:
            tests = paired_tests(one.reports, [None] * len(one.runs))
            for part in _parts(one, "model", tests):
                text = part.table.markdown()
                text.encode()
                view(part.table)
            told = [*conclusion(one.reports, tests.p_values), *facts(one.runs).values()]
            "".join([*told, *shared_settings(one.reports).values()]).encode()
            if number % 97 == 0:  # each of the values in turn: drawing takes ten times as long
                draw_figures(one.reports, "figures")
    assert used > 100
    assert named > 1000


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("cost", "experts", "wall_seconds"), "x", "cost.experts.wall_seconds: must be a number"),
        (("cost", "experts"), DELETED, "cost: must have the stage experts, before evaluate"),
        (("cost",), [], "cost: must be an object"),
        (("experts", "after", 1), "x", "experts.after.1: must be a whole number"),
        (
            ("experts", "after"),
            [3],
            "experts.after: must have a number for each of experts.before, which are not all 0",
        ),
        (("metrics", "arc/acc,none", "value"), None, "metrics.arc/acc,none.value: must be a number"),
        (("settings", "eval"), DELETED, "settings.eval: missing"),
        (("model", "params_before"), True, "model.params_before: must be a whole number"),
        (("seed",), 10**400, "seed: must be a number of at most 18 digits"),
        (("name",), "\ud800", "name: half of a character"),
        (("sparsity", "target"), nan, "sparsity.target: must be a number from 0 to 1"),
        (("provenance", "versions", "lm-eval"), DELETED, "provenance.versions.lm-eval: missing"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(make_report: Make, place: Any, value: Any, told: str) -> None:
    assert why_unusable(changed(make_report(), place, value)) == f"damaged, {told}"


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    "kind", ["empty", "half", "no text", "deep", "deeper", "folder", "pipe", "link", "loop", "list"]
)
def test_what_is_no_report_is_named_and_the_others_are_used(make_report: Make, tmp_path: Path, kind: str) -> None:
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
    (tmp_path / "good/report.json").write_text(json.dumps(make_report()))
    file = tmp_path / "bad/report.json"
    made: dict[str, Callable[[], Any]] = {
        "empty": file.touch,
        "half": lambda: file.write_text('{"schema": 2'),
        "no text": lambda: file.write_bytes(b"\xff\xfe\xff"),
        "deep": lambda: file.write_text(json.dumps(make_report())[:-1] + f', "x": {nested(500)}}}'),
        "deeper": lambda: file.write_text(nested(100_000)),
        "folder": file.mkdir,
        "pipe": lambda: os.mkfifo(file),
        "link": lambda: file.symlink_to("nowhere"),
        "loop": lambda: file.symlink_to(file),
        "list": lambda: file.write_text("[1, null]"),
    }
    made[kind]()
    found = read_runs([tmp_path])
    assert [run.where for run in found.runs] == [str(tmp_path / "good")]
    assert found.skipped
    assert all(str(tmp_path / "bad") in line and "\n" not in line for line in found.skipped)


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"benchmark": "arc", "metric": "acc,none"}', b"[]", b"1", "pipe"])
def test_damaged_samples_are_left_out_and_named(make_report: Make, tmp_path: Path, content: Any) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(make_report(name)))
    file = tmp_path / "a/samples.jsonl"
    if content == "pipe":
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    found = read_runs([tmp_path])
    (one,) = comparable_sets(found.runs)
    tests = paired_tests(one.reports, [run.folder for run in one.runs])
    notes = [note for part in _parts(one, "model", tests) for note in part.table.notes]
    assert any(note.startswith(f"No p-value for want of whole items: {file}: ") for note in notes)
    assert any(note.endswith(f"for want of samples.jsonl: {tmp_path / 'b'}.") for note in notes)


def test_numbers_that_are_not_finite_are_read_again_and_never_the_best(make_report: Make, tmp_path: Path) -> None:
    """Perplexity after heavy pruning; over two seeds, of which one exploded, there is no error to know."""
    runs = [("fine", 0, 3.0), ("burst", 0, inf), ("burst", 1, 2.0), ("lost", 0, nan), ("worse", 0, 4.0)]
    for number, (name, seed, perplexity) in enumerate(runs):
        (tmp_path / str(number)).mkdir()
        content = strict(make_report(name, 0.5, perplexity, seed=seed))
        (tmp_path / str(number) / "report.json").write_text(json.dumps(content, allow_nan=False))
    assert '"Infinity"' in (tmp_path / "1/report.json").read_text()
    write_report([tmp_path], tmp_path / "report")
    table = (tmp_path / "report/tables/toy_moe.md").read_text()
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if line.startswith("| ")}
    assert " | **3.000** | " in rows["fine"]
    assert " | inf | " in rows["burst"]
    assert " | nan | " in rows["lost"]


def test_every_kept_report_can_be_read() -> None:
    lists = list((Path(__file__).parents[2] / "results").glob("*.json"))
    reports = [(file, report) for file in lists for report in json.loads(file.read_text()) if "schema" in report]
    assert len(reports) > 50
    assert [(file, why) for file, report in reports if (why := why_unusable(report))] == []
