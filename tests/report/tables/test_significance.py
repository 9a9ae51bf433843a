"""Tables of paired tests, by hand."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from stun_exp.report.data.samples import read_samples
from stun_exp.report.tables.significance import paired_tests, significance_table
from stun_exp.report.tables.table import ResultsTable

Make = Callable[..., dict[str, Any]]


def write(folder: Path, values: Sequence[float], metric: str = "acc,none", prompt: str = "h") -> Path:
    """A run's samples of the benchmark arc, the last item first: files need no order."""
    folder.mkdir()
    items = [
        {"benchmark": "arc", "task": "arc", "metric": metric, "doc": doc, "hash": f"{prompt}{doc}", "value": value}
        for doc, value in reversed(list(enumerate(values)))
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder


def table_of(reports: Sequence[dict[str, Any]], folders: Sequence[Path | None]) -> ResultsTable | None:
    return significance_table(paired_tests(reports, folders))


def test_a_pair_by_hand(make_report: Make, tmp_path: Path) -> None:
    """Ten items, all lost by b: p = 2 / 2^10. What both get right or wrong says nothing."""
    a, b = write(tmp_path / "a", [1.0] * 10 + [1, 0]), write(tmp_path / "b", [0.0] * 10 + [1, 0])
    table = table_of([make_report("a", 11 / 12), make_report("b", 1 / 12)], [a, b])
    assert table is not None
    assert table.columns == ["A", "B", "sparsity", "arc (acc)", "p (arc)"]
    assert table.rows == [["a", "b", "40 %", "+83.3", "0.002"]]
    assert table.cells[0][4].value == pytest.approx(2 / 2**10)
    assert table.cells[0][4].bold


def test_p_values_are_those_of_the_tests_that_could_be_made(make_report: Make, tmp_path: Path) -> None:
    """Ten items, all lost by b; c left no samples."""
    folders = [write(tmp_path / "a", [1.0] * 10), write(tmp_path / "b", [0.0] * 10), None]
    found = paired_tests([make_report(name) for name in "abc"], folders).p_values
    assert found == pytest.approx({("arc/acc,none", frozenset(((0,), (1,)))): 2 / 2**10})


def test_three_pairs_are_corrected_together(make_report: Make, tmp_path: Path) -> None:
    """0.25 each, of three items that one has and the other has not; three times that, and no more than 1, with Holm."""
    values = {"a": [1, 1, 1, 0, 0, 0], "b": [0, 0, 0, 0, 0, 0], "c": [1, 1, 1, 1, 1, 1]}
    folders = [write(tmp_path / name, one) for name, one in values.items()]
    table = table_of([make_report(name, sum(one) / 6) for name, one in values.items()], folders)
    assert table is not None
    # a-b 0.25, a-c 0.25, b-c 2 / 2^6: three times the smallest, then twice 0.25
    assert [row[4].value for row in table.cells] == pytest.approx([0.5, 0.5, 3 * 2 / 64])


def test_pairs_are_of_one_sparsity_and_differ_in_one_thing(make_report: Make) -> None:
    """Not STUN at one lambda with OWL at another ratio and 65 %; not with the unpruned model."""
    reports = [
        make_report("STUN", **{"expert_pruner.lambda2": 0.1}),
        make_report("STUN", **{"expert_pruner.lambda2": 1.0}),
        make_report("STUN", sparsity=0.65, **{"expert_pruner.lambda2": 0.1}),
        make_report("OWL", expert_pruner={"_target_": "none"}, baseline=0.9),
        make_report("REAP", expert_pruner={"_target_": "reap", "ratio": 0.3}),
    ]
    table = table_of(reports, [None] * 5)
    assert table is not None
    assert [row[:3] for row in table.rows] == [
        ["STUN (lambda2=0.1)", "STUN (lambda2=1.0)", "40 %"],
        ["STUN (lambda2=0.1)", "OWL", "40 %"],
        ["STUN (lambda2=1.0)", "OWL", "40 %"],
        ["OWL", "REAP", "40 %"],
    ]
    assert table_of(reports[:1], [None]) is None


def test_points_that_differ_by_their_experts_alone_are_told_apart(make_report: Make) -> None:
    reports = [make_report("STUN", **{"expert_pruner.ratio": ratio}) for ratio in (0.1, 0.3)]
    for report, share in zip(reports, (0.1, 0.3), strict=True):
        report["experts"]["ratio"] = share
    table = table_of(reports, [None, None])
    assert table is not None
    assert table.rows[0][:2] == ["STUN, 10.0 % of the experts gone", "STUN, 30.0 % of the experts gone"]


def test_over_seeds_an_item_counts_by_its_mean(make_report: Make, tmp_path: Path) -> None:
    """Two seeds double no items: a better by 0.5 on 8 items is one of 2^8 signs, twice; only shared seeds count."""
    reports, folders = [], []
    for name, seed, values in (
        ("a", 0, [1] * 8),
        ("a", 1, [0] * 8),
        ("b", 0, [0] * 8),
        ("b", 1, [0] * 8),
        ("b", 2, [1] * 8),
    ):
        reports.append(make_report(name, sum(values) / 8, seed=seed))
        folders.append(write(tmp_path / f"{name}{seed}", values))
    table = table_of(reports, folders)
    assert table is not None
    assert table.rows[0][3] == "+50.0"
    p = table.cells[0][4].value
    assert p is not None
    assert 2 / 2**8 <= p < 0.02  # ranks are tied, so the test is the approximate one


def test_missing_samples_are_told(make_report: Make, tmp_path: Path) -> None:
    reports = [make_report("a", 0.5), make_report("b", 0.25)]
    table = table_of(reports, [write(tmp_path / "a", [1, 0]), tmp_path])
    assert table is not None
    assert table.rows == [["a", "b", "40 %", "+25.0", "-"]]
    assert table.notes[-1] == f"No p-value for want of samples.jsonl: {tmp_path}."
    table = table_of(reports, [None, None])
    assert table is not None
    assert table.notes[-1] == "No p-value for want of samples.jsonl: a, b."


def test_other_items_are_refused_by_name(make_report: Make, tmp_path: Path) -> None:
    """As many items with the same numbers, of which two were asked in other words; or one item fewer."""
    reports = [make_report("a"), make_report("b")]
    a, b, c = (write(tmp_path / name, [1, 0, 1]) for name in "abc")
    text = (b / "samples.jsonl").read_text().replace('"h1"', '"x1"').replace('"h2"', '"x2"')
    (b / "samples.jsonl").write_text(text)
    with pytest.raises(
        ValueError, match=r"arc/acc,none: .*a and .*b did not answer the same items: arc 1, arc 2 differ"
    ):
        table_of(reports, [a, b])
    (c / "samples.jsonl").write_text("".join((c / "samples.jsonl").read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match="did not answer the same items: arc 2 differ or are in one alone"):
        table_of(reports, [a, c])


def test_a_group_s_tasks_are_items_of_the_group(tmp_path: Path) -> None:
    """Item 0 of two tasks is two items; other metrics are left alone."""
    rows = [
        {"benchmark": "mmlu", "task": task, "metric": metric, "doc": 0, "hash": "h", "value": 1.0}
        for task in ("mmlu_b", "mmlu_a")
        for metric in ("acc,none", "acc_norm,none")
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_samples(tmp_path, ["mmlu/acc,none"])
    assert found is not None
    assert found.keys() == {"mmlu/acc,none"}
    assert found["mmlu/acc,none"].ids == (("mmlu_a", 0, "h"), ("mmlu_b", 0, "h"))


def test_damaged_samples_are_named(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"benchmark": "arc", "ta')
    with pytest.raises(ValueError, match=r"samples.jsonl: damaged"):
        read_samples(tmp_path, [])
