"""lm-eval's own tasks on data that lies on a machine without a network, in layouts made small here."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_fixtures import GSM8K, SUMS, Rows, in_hub_layout, write_rows

from stun_exp.config.conf import CONF
from stun_exp.data.missing import MissingData
from stun_exp.evaluation.benchmarks import LMEval, PreparedBenchmarks
from stun_exp.evaluation.harness import measure
from stun_exp.evaluation.records import Benchmark
from stun_exp.evaluation.tasks import definitions, manager_of

ARC = {"id": "0", "question": "?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}
PROGRAM = {
    "task_id": "0",
    "prompt": "def one():\n",
    "test": "def check(one):\n    assert one() == 1",
    "entry_point": "one",
}
PROBLEM = {"task_id": 9, "text": "Give one.", "code": "def one(): return 1", "test_list": ["assert one() == 1"] * 3}
CODE: dict[str, Rows] = {"openai_humaneval/test.jsonl": [PROGRAM], "mbpp/full/test.jsonl": [PROBLEM]}


def shipped(*names: str, data: Path | None = None, run_unsafe_code: bool = False, **changes: Any) -> LMEval:
    """The benchmarks of that name in conf/benchmark."""
    chosen = {}
    for name in names:
        settings = yaml.safe_load((CONF / "benchmark" / f"{name}.yaml").read_text())
        chosen[name] = Benchmark(**{key: value for key, value in settings.items() if key != "_target_"} | changes)
    return LMEval(
        benchmarks=chosen,
        limit=None,
        data=None if data is None else str(data),
        run_unsafe_code=run_unsafe_code,
        batch_size=1,
        backend="hf",
        vllm_python=None,
        device_map="none",
        baseline=False,
    )


def figures(prepared: PreparedBenchmarks) -> dict[str, float]:
    """The metrics of a model that has one answer to everything."""
    from lm_eval.models.dummy import DummyLM

    [(benchmark, loaded)] = prepared.benchmarks
    return {name: metric.value for name, metric in measure(benchmark, loaded, DummyLM(), None).metrics.items()}


def questions(settings: LMEval) -> list[str]:
    [(_, loaded)] = settings.prepare().benchmarks
    return list(loaded.tasks["gsm8k"].dataset["test"]["question"])


def test_gsm8k_is_measured_from_the_hubs_cache(offline: Path) -> None:
    in_hub_layout(offline, "openai/gsm8k", GSM8K)
    found = figures(shipped("gsm8k").prepare())
    assert found.keys() == {"gsm8k/exact_match,strict-match", "gsm8k/exact_match,flexible-extract"}


def test_a_folder_of_data_sets_and_a_path_are_read_before_the_cache(offline: Path, tmp_path: Path) -> None:
    in_hub_layout(offline, "openai/gsm8k", GSM8K)
    write_rows(tmp_path / "all" / "gsm8k" / "test.jsonl", SUMS[:1])
    write_rows(tmp_path / "all" / "gsm8k" / "train.jsonl", SUMS)
    write_rows(tmp_path / "own" / "test.jsonl", SUMS[1:2])
    write_rows(tmp_path / "own" / "train.jsonl", SUMS)
    assert questions(shipped("gsm8k")) == [row["question"] for row in SUMS[8:]]
    assert questions(shipped("gsm8k", data=tmp_path / "all")) == [SUMS[0]["question"]]
    assert questions(shipped("gsm8k", data=tmp_path / "all", path=str(tmp_path / "own"))) == [SUMS[1]["question"]]


def test_figures_are_cached_by_the_content_of_the_data(offline: Path, tmp_path: Path) -> None:
    """The same rows in another place are the same; one answer that differs is not, though the file's time is."""
    in_hub_layout(offline, "openai/gsm8k", GSM8K)
    write_rows(tmp_path / "a" / "gsm8k" / "train.jsonl", SUMS[:8])
    test = write_rows(tmp_path / "a" / "gsm8k" / "test.jsonl", SUMS[8:])
    os.utime(test, (1, 1))
    from_hub, from_folder = (shipped("gsm8k", data=data).prepare().depend_on() for data in (None, tmp_path / "a"))
    assert from_hub == from_folder
    write_rows(test, [*SUMS[8:11], SUMS[11] | {"answer": "#### 0"}])
    os.utime(test, (1, 1))
    assert shipped("gsm8k", data=tmp_path / "a").prepare().depend_on() != from_hub


def test_all_data_that_is_missing_is_told_at_once(offline: Path) -> None:
    in_hub_layout(offline, "openai/gsm8k", GSM8K)
    with pytest.raises(MissingData) as refused:
        shipped("gsm8k", "arc_easy", "arc_challenge", "mmlu", "hellaswag").prepare()
    first, looked, command = str(refused.value).split("\n")
    assert (
        "allenai/ai2_arc (ARC-Easy, ARC-Challenge), cais/mmlu (abstract_algebra, anatomy, astronomy and 54 more"
        in first
    )
    assert "Rowan/hellaswag" in first
    assert "gsm8k" not in first
    assert str(offline) in looked
    assert str(offline.parent / "datasets") in looked
    assert "stun fetch eval=" in command


def test_arc_without_the_names_of_its_parts_is_not_read_as_both(offline: Path, tmp_path: Path) -> None:
    """Two benchmarks on the same items, one of them mislabelled."""
    for split in ("train", "validation", "test"):
        write_rows(tmp_path / "ai2_arc" / f"{split}.jsonl", [ARC] * 2)
    assert shipped("arc_easy", data=tmp_path).prepare().benchmarks
    with pytest.raises(MissingData):
        shipped("arc_easy", "arc_challenge", data=tmp_path).prepare()


def test_a_split_that_is_not_there_is_named(offline: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "gsm8k" / "test.jsonl", SUMS)
    with pytest.raises(
        ValueError, match=r"benchmark gsm8k: its data has no split 'train' \(openai/gsm8k \(main\) has test"
    ):
        shipped("gsm8k", data=tmp_path).prepare()


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_programs_of_the_model_are_not_run_without_consent(name: str, offline: Path) -> None:
    """Not even imported is the code that would run them; and no data is looked for."""
    with pytest.raises(
        ValueError, match=r"runs the programs that the model writes.*eval\.run_unsafe_code=true"
    ) as refused:
        shipped(name).prepare()
    assert "\n" not in str(refused.value)


def test_with_consent_the_metric_that_runs_code_is_needed(offline: Path, tmp_path: Path) -> None:
    for file, rows in CODE.items():
        write_rows(tmp_path / file, rows)
    with pytest.raises(MissingData, match=r"evaluate-metric/code_eval \(the metric that runs code\)"):
        shipped("humaneval", "mbpp", data=tmp_path, run_unsafe_code=True).prepare()


# In the place of the metric, which is not here: what is answered depends on the consent alone.
METRIC = """
import os
import datasets
import evaluate


class CodeEval(evaluate.Metric):
    def _info(self):
        features = {"predictions": datasets.Sequence(datasets.Value("string")), "references": datasets.Value("string")}
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(features))

    def _compute(self, predictions, references, k=(1,)):
        return {"pass@1": float(os.environ.get("HF_ALLOW_CODE_EVAL") == "1")}, {}
"""


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_with_consent_programs_are_run_and_counted(
    name: str, offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    for module in [module for module in sys.modules if module.startswith(f"lm_eval.tasks.{name}")]:
        monkeypatch.delitem(sys.modules, module)
    (tmp_path / "code_eval").mkdir()
    (tmp_path / "code_eval" / "code_eval.py").write_text(METRIC)
    for file, rows in CODE.items():
        write_rows(tmp_path / "data" / file, rows)
    settings = shipped(name, data=tmp_path / "data", run_unsafe_code=True)
    benchmark = settings.benchmarks[name]
    assert figures(settings.prepare())[f"{benchmark.task}/{benchmark.metric}"] == 1.0
    assert "HF_ALLOW_CODE_EVAL" not in os.environ


def test_packages_that_a_task_lacks_are_told_with_the_command_that_installs_them(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "langdetect", None)
    monkeypatch.setitem(sys.modules, "immutabledict", None)
    for module in [module for module in sys.modules if module.startswith("lm_eval.tasks.ifeval")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ValueError, match=r"eval.benchmarks.ifeval: .*pip install 'stun-exp\[ifeval\]'"):
        shipped("ifeval").prepare()


def test_minerva_math_says_that_it_cannot_be_here(offline: Path) -> None:
    """Hydra's parser and sympy's want two versions of one package."""
    with pytest.raises(ValueError, match=r"minerva_math: .*antlr4-python3-runtime 4\.11.*Hydra.*4\.9"):
        shipped("minerva_math").prepare()


def test_shots_and_metrics_of_generative_benchmarks_are_lm_evals_own() -> None:
    for name, of_groups in (("humaneval", 0), ("mbpp", 3), ("ifeval", 0), ("bbh", 3), ("minerva_math", 4)):
        [benchmark] = shipped(name).benchmarks.values()
        defined = list(definitions(manager_of(benchmark), benchmark.task))
        assert {one["num_fewshot"] for one in defined} == {benchmark.num_fewshot} == {of_groups}
        metrics = {str(metric["metric"]).rpartition(".")[2] for one in defined for metric in one["metric_list"]}
        assert benchmark.metric.partition(",")[0] in metrics | ({"pass@1"} if "pass_at_k" in metrics else set())
        filters = {one["name"] for task in defined for one in task.get("filter_list") or [{"name": "none"}]}
        assert benchmark.metric.partition(",")[2] in filters


@pytest.mark.slow
def test_a_task_is_the_same_found_in_its_own_folder_as_among_all() -> None:
    """Of a group that reaches into other folders, or has its members by a tag, no part is left out."""
    from lm_eval.tasks import TaskManager

    everything = TaskManager()
    for name in ("gsm8k", "mmlu", "bbh", "minerva_math", "arc_easy"):
        [benchmark] = shipped(name).benchmarks.values()
        found = list(definitions(manager_of(benchmark), benchmark.task))
        assert found == list(definitions(everything, benchmark.task))
