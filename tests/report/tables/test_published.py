"""Published figures: which run is about which, and what is said of the two."""

from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import yaml

from stun_exp.report.tables.published import published_table, verdict_text, with_verdict
from stun_exp.report.tables.published_rows import published_rows

CONF = Path(__file__).parents[3] / "conf"
LU8 = ("arc_challenge", "arc_easy", "boolq", "hellaswag", "mmlu", "openbookqa", "rte", "winogrande")
Ours = Callable[..., dict[str, Any]]


@pytest.fixture
def ours(make_report: Callable[..., dict[str, Any]]) -> Ours:
    """(method, metrics: task -> accuracy) -> a run of Mixtral-8x7B-Instruct at 65 %, as in STUN's Table 2.

    Of the size that the model's card says, and with the card's share of experts, unless others are given.
    """

    def make(
        method: str = "stun_owl", model: str = "mixtral_8x7b_instruct", shots: int = 0, **rest: Any
    ) -> dict[str, Any]:
        metrics = rest.pop("metrics", {"hellaswag/acc,none": 0.5405, "mmlu/acc,none": 0.61, "gsm8k/other": 0.5})
        stderr = rest.pop("stderr", 0.004)
        choices = {"model": model, "method": method, "calibration": "c4"} | rest.pop("choices", {})
        shipped = yaml.safe_load((CONF / "model" / f"{model}.yaml").read_text())
        report = make_report(
            method,
            sparsity=rest.pop("sparsity", 0.65),
            model=rest.pop("source", "/some/copy"),
            choices=choices,
            recovery={"_target_": "none"},
            unstructured_pruner={"pattern": "unstructured"},
            **rest,
        )
        report["choices"] |= {"recovery": choices.get("recovery", "none"), "skipping": "none"}
        report["settings"]["skipping"] = {"_target_": "none"}
        report["settings"]["model"] |= {key: shipped[key] for key in ("parameters", "expert_ratio", "dimensions")}
        report["settings"]["expert_pruner"]["ratio"] = shipped["expert_ratio"]
        report["model"]["params_before"] = shipped["parameters"]
        if model.startswith("mixtral"):
            report["experts"] |= {"before": [8] * shipped["dimensions"]["num_hidden_layers"]}
        report["metrics"] = {
            key: {"value": value, "stderr": stderr, "num_samples": 9, "num_fewshot": shots, "task_version": "1"}
            for key, value in metrics.items()
        }
        return report

    return make


def lines(*reports: dict[str, Any]) -> list[list[str]]:
    """Of each row: method and benchmark as published, theirs, ours, difference, error, verdict with the reason."""
    table = published_table(reports)
    if table is None:
        return []
    assert [table.columns[i] for i in (0, 4, 7, 8, 12)] == ["verdict", "method", "benchmark", "published", "reason"]
    verdicts = [row[0] if row[12] == "-" else f"{row[0]}: {row[12]}" for row in table.rows]
    return [[row[4], *row[7:12], verdict] for row, verdict in zip(table.rows, verdicts, strict=True)]


def test_the_file_says_where_each_figure_is_from_and_what_it_is_about() -> None:
    """Names are of files in conf/; where nothing corresponds, the reason stands there."""
    packs, cards, methods = ({f.stem for f in (CONF / g).glob("*.yaml")} for g in ("experiment", "model", "method"))
    tasks = {yaml.safe_load(file.read_text())["task"] for file in (CONF / "benchmark").glob("*.yaml")}
    for row in published_rows():
        assert float(row["value"]) >= 0
        assert row["source"]
        assert row["status"] in ("primary", "unverified", "contradictory")
        assert row["pack"] in packs | {""}, row
        assert row["model_card"] in cards | {""}, row
        assert row["our_method"] in methods | {""}, row
        assert {key.partition("/")[0] for key in row["our_metrics"].split()} <= tasks, row
        assert row["our_metrics"] or row["remark"], row
        assert row["num_fewshot"] in ("", "0", "5")


@pytest.mark.parametrize(
    ("table", "model", "method", "task", "value", "status"),
    [
        ("Table 2", "Snowflake Arctic", "STUN (w/ OWL)", "GSM8K", {"70.28", "43.97"}, "unverified"),
        ("Table 2", "Mixtral-8x7B", "Lu layer-wise r=6", "Avg", {"64.22"}, "primary"),
        ("Table 3", "Mixtral-8x7B-Instruct", "Lu r=4 calib MATH", "GSM8K", {"47.01"}, "primary"),
        ("Table 2", "Mixtral-8x22B", "MoE-Pruner 50% unstructured", "WikiText", {"3.64"}, "primary"),
        ("Table 4", "Mixtral-8x7B", "MoE-Pruner 50% + expert-wise KD", "HellaSwag", {"68.77"}, "primary"),
    ],
)
def test_some_figures(table: str, model: str, method: str, task: str, value: set[str], status: str) -> None:
    names = ("table", "model", "method", "task")
    found = [row for row in published_rows() if [row[name] for name in names] == [table, model, method, task]]
    assert {row["value"] for row in found} == value
    assert {row["status"] for row in found} == {status}


def test_verdicts_by_hand(ours: Ours) -> None:
    """Published: HellaSwag 54.05, MMLU 60.39. With errors of 0.4 a difference of 0.61 is noise, one of 0.85 is none."""
    found = lines(ours(metrics={"hellaswag/acc,none": 0.5405, "mmlu/acc,none": 0.61}))
    assert [row[1:] for row in found if row[3] != "-"] == [
        ["HellaSwag", "54.05 (unverified)", "54.05", "+0.00", "0.40", "agrees within noise"],
        ["MMLU", "60.39 (unverified)", "61.00", "+0.61", "0.40", "agrees within noise"],
    ]
    found = lines(ours(metrics={"hellaswag/acc,none": 0.549, "mmlu/acc,none": 0.595}))
    assert {(row[1], row[-1]) for row in found} >= {("HellaSwag", "better"), ("MMLU", "worse")}


def test_printed_is_what_was_compared_and_how_much_was_not(ours: Ours) -> None:
    table = published_table([ours(metrics={"hellaswag/acc,none": 0.549, "mmlu/acc,none": 0.595})])
    assert table is not None
    printed = with_verdict(table)
    assert {row[0].text for row in printed.cells} == {"better", "worse"}
    others = len(table.cells) - len(printed.cells)
    assert others > 0
    assert printed.notes[-1] == verdict_text(table)
    assert verdict_text(table) == (
        f"Of {2 + others} published figures: ours better 1, ours worse 1, not comparable {others}."
    )
    toy = ours(choices={"experiment": "toy/stun_table2"}, source="bundled:toy_moe", model="toy_moe")
    table = published_table([toy])
    assert table is not None
    assert with_verdict(table).cells == []
    assert with_verdict(table).notes == (
        f"No verdict: of {len(table.cells)} published figures none can be compared with ours: a toy version, another "
        "model.",
    )


def test_what_was_not_verified_or_not_stated_is_told(ours: Ours) -> None:
    table = published_table([ours()])
    assert table is not None
    assert any(note.startswith("Unverified figures are from notes of others") for note in table.notes)
    assert "STUN 2409.06211, Table 2: shots are not stated." in table.notes
    table = published_table(
        [ours("lu", "mixtral_8x7b", sparsity=0.25, metrics={}, **{"calibration.num_sequences": 128})]
    )
    assert table is not None
    assert not any("Unverified" in note and "Lu" in note for note in table.notes)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"eval": {"benchmarks": {}, "limit": 8}}, "eval.limit=8"),
        ({"stderr": None}, "no standard error"),
        ({"stderr": 0.0}, "a standard error of 0, which says nothing"),
        ({"metrics": {"hellaswag/acc_norm,none": 0.7}}, "another metric, our run has no hellaswag/acc,none"),
    ],
)
def test_what_cannot_be_compared_says_why(ours: Ours, changed: dict[str, Any], why: str) -> None:
    (found,) = [row for row in lines(ours(**changed)) if row[1] == "HellaSwag"]
    assert found[-1] == f"not comparable: {why}"


def test_a_sparsity_that_was_missed_is_told(ours: Ours) -> None:
    report = ours()
    report["sparsity"]["achieved"] = 0.6
    assert {row[-1] for row in lines(report) if row[1] == "MMLU"} == {"not comparable: total sparsity 60.0 %"}


def test_a_name_is_no_model(ours: Ours) -> None:
    """Two layers of 8 experts under the name of a model with 46.7 billion parameters; or its size, and other sizes."""
    report = ours(metrics={"mmlu/acc,none": 0.6039})
    (row,) = [row for row in lines(report) if row[1] == "MMLU"]
    assert row[-1] == "agrees within noise"
    report["model"]["params_before"], report["experts"]["before"] = 1_000_000, [8, 8]
    assert [row[-1] for row in lines(report) if row[1] == "MMLU"] == [
        "not comparable: the model has 1,000,000 parameters and not the 46,702,792,704 of mixtral_8x7b_instruct"
    ]
    report["experts"]["before"] = [4, 4]
    (row,) = [row for row in lines(report) if row[1] == "MMLU"]
    assert row[-1].endswith("; 2 layers of 4 experts and not the 32 of 8 of mixtral_8x7b_instruct")


def test_other_dimensions_or_another_share_of_experts_get_no_verdict(ours: Ours) -> None:
    """Table 2 does not say the share, so it is the card's that has to go. A report of an older version has no sizes."""
    report = ours(metrics={"mmlu/acc,none": 0.6039})
    report["settings"]["model"]["dimensions"]["hidden_size"] = 64
    report["settings"]["expert_pruner"]["ratio"] = 0.5
    assert [row[-1] for row in lines(report) if row[1] == "MMLU"] == [
        "not comparable: model.dimensions are not those of mixtral_8x7b_instruct; expert_pruner.ratio=0.5 and not the "
        "0.125 of mixtral_8x7b_instruct"
    ]
    old = ours(metrics={"mmlu/acc,none": 0.6039})
    del old["settings"]["model"]
    assert [row[-1] for row in lines(old) if row[1] == "MMLU"] == ["agrees within noise"]


def test_contradictory_sources_give_no_verdict(ours: Ours) -> None:
    """One note gives 1.29 on GSM8K to OWL, another to LLM-Pruner: as near as ours may come, it says nothing."""
    found = lines(ours("owl", metrics={"gsm8k/exact_match,strict-match": 0.0129}))
    (row,) = [row for row in found if row[:2] == ["OWL", "GSM8K"]]
    assert row[2:4] == ["1.29 (contradictory)", "1.29"]
    assert row[-1].startswith("not comparable: sources contradict each other: one note gives 1.29 on GSM8K to OWL ")
    contradictory = [row for row in published_rows() if row["status"] == "contradictory"]
    assert {(row["model_card"], row["our_method"], row["sparsity"]) for row in contradictory} == {
        ("mixtral_8x7b_instruct", "owl", "0.65")
    }
    assert len(contradictory) == 5


def test_shots_and_shares_of_experts_are_compared_where_they_are_published(ours: Ours) -> None:
    """Lu's 6 of 8 experts, without shots. A quarter of the experts is not a quarter of all weights: no matter here."""
    settings = {"sparsity": 0.25, "metrics": {"mmlu/acc,none": 0.58}, "calibration.num_sequences": 128}
    report = ours("lu", "mixtral_8x7b", shots=5, **settings)
    report["sparsity"]["achieved"] = 0.2308
    (found,) = [row for row in lines(report) if row[:2] == ["Lu layer-wise r=6", "MMLU"]]
    assert found[-1] == "not comparable: 20.3 % of the experts removed and not 25 %; 5 shots and not 0"
    report = ours("lu", "mixtral_8x7b", **settings)
    report["experts"]["ratio"] = 0.25
    (found,) = [row for row in lines(report) if row[:2] == ["Lu layer-wise r=6", "MMLU"]]
    assert found[-1] == "agrees within noise"


def test_a_mean_over_benchmarks_has_the_error_of_a_mean(ours: Ours) -> None:
    """Eight errors of 0.4 points: 0.4 / sqrt 8. One benchmark short, it is no such mean."""
    metrics = {f"{task}/acc,none": 0.6425 + 0.01 * (-1) ** number for number, task in enumerate(LU8)}
    settings = {"sparsity": 0.25, "calibration.num_sequences": 128}
    report = ours("lu", "mixtral_8x7b", metrics=metrics, **settings)
    report["experts"]["ratio"] = 0.25
    (found,) = [row for row in lines(report) if row[:2] == ["Lu layer-wise r=6", "Avg"]]
    assert found[3:] == ["64.25", "+0.03", f"{0.4 / sqrt(8):.2f}", "agrees within noise"]
    report["metrics"].pop("rte/acc,none")
    (found,) = [row for row in lines(report) if row[:2] == ["Lu layer-wise r=6", "Avg"]]
    assert found[-1].startswith("not comparable: another metric")


def test_perplexities_are_of_another_kind(ours: Ours) -> None:
    found = lines(ours("moe_pruner", "mixtral_8x7b", sparsity=0.5, metrics={"wikitext/word_perplexity,none": 5.0}))
    (row,) = [row for row in found if row[2] == "4.68"]
    assert row[3:-1] == ["-", "-", "-"]
    assert row[-1].startswith("not comparable: perplexity by tokens")


def test_other_settings_are_another_row(ours: Ours) -> None:
    """Recovered or not, on maths or on C4: a figure of one is no figure of the other."""

    def methods(**changed: Any) -> set[str]:
        return {row[0] for row in lines(ours("moe_pruner", "mixtral_8x7b", sparsity=0.5, **changed))}

    assert methods() == {"MoE-Pruner 50% unstructured", "MoE-Pruner 50%"}
    assert methods(choices={"calibration": "math"}) == set()
    recovered = ours("moe_pruner", "mixtral_8x7b", sparsity=0.5, choices={"recovery": "expert_distillation"})
    recovered["settings"]["recovery"]["expert_weight"] = "balanced"
    assert {row[0] for row in lines(recovered)} == {"MoE-Pruner 50% + expert-wise KD"}


def test_the_baseline_stands_for_the_unpruned_model(ours: Ours) -> None:
    report = ours("random", "mixtral_8x7b", sparsity=0.25, metrics={})
    report["baseline"] = {"metrics": {"mmlu/acc,none": ours(metrics={"x": 0.6798})["metrics"]["x"]}}
    found = [row for row in lines(report) if row[:2] == ["None r=8", "MMLU"]]
    assert found == [["None r=8", "MMLU", "67.88", "67.98", "+0.10", "0.40", "agrees within noise"]]


def test_a_toy_version_is_shown_beside_its_pack_and_compared_with_nothing(ours: Ours) -> None:
    """Its own benchmarks, calibrated on its own text. A run of another real model is not about these figures at all."""
    toy = {"model": "toy_moe", "source": "bundled:toy_moe", "metrics": {"toy_mmlu/acc,none": 0.2}}
    choices = {"experiment": "toy/stun_table2", "calibration": "toy"}
    found = [row for row in lines(ours(choices=choices, **toy)) if row[1] == "MMLU"]
    assert {(*row[2:5], row[-1]) for row in found} == {
        ("59.24 (unverified)", "20.00", "-", "not comparable: a toy version, another model"),
        ("60.39 (unverified)", "20.00", "-", "not comparable: a toy version, another model"),
    }
    assert lines(ours(choices={"calibration": "toy"}, **toy)) == []
    assert lines(ours(model="olmoe_1b_7b", choices={"experiment": "stun_table2"})) == []


def test_what_a_pack_lacks_is_told(ours: Ours) -> None:
    table = published_table(
        [ours("owl", choices={"experiment": "stun_table2"}), ours(sparsity=0.4, choices={"experiment": "stun_table2"})]
    )
    assert table is not None
    assert {row[4] for row in table.rows} == {"OWL"}
    assert table.notes[-1] == (
        "Of the same packs, but without a run of ours: Table 2, Mixtral-8x7B-Instruct, STUN (w/ OWL), 65 %."
    )


def test_what_nobody_published_has_no_table(make_report: Callable[..., dict[str, Any]]) -> None:
    assert published_table([make_report()]) is None
