"""The toy benchmarks are lm-eval tasks that load anywhere, and their files are what the generator writes."""

from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from lm_eval.tasks import TaskManager

from stun_exp.toy import TASKS
from stun_exp.toy.benchmarks import benchmark_items, write_benchmarks
from stun_exp.toy.lexicon import SUBJECTS
from stun_exp.toy.text import LETTERS, lettered_choices, lettered_header
from stun_exp.toy.world import world

NAMES = ["toy_gsm8k", "toy_arc", "toy_hellaswag", "toy_mmlu", "toy_text"]


@pytest.fixture(scope="module")
def tasks() -> dict[str, Any]:
    loaded: dict[str, Any] = TaskManager(include_path=str(TASKS), include_defaults=False).load(NAMES)["tasks"]
    return loaded


def test_committed_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    write_benchmarks(tmp_path)
    committed = {path.name: path.read_bytes() for path in (TASKS / "data").iterdir()}
    assert committed
    assert committed == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_items_have_four_different_choices_and_even_golds() -> None:
    golds = []
    for stem, items in benchmark_items().items():
        for item in items:
            choices = item.get("choices") or item.get("endings")
            if choices:
                assert len(set(choices)) == 4, stem
                golds.append(next(item[key] for key in ("gold", "label", "answer") if key in item))
    # A model that always says A must not score.
    assert all(0.2 < golds.count(position) / len(golds) < 0.3 for position in range(4))


def test_a_value_keeps_its_letter() -> None:
    # What makes letters learnable for so small a model; shuffled, one would have to point at options.
    for subject in SUBJECTS:
        for fact in world().subject_facts(subject):
            choices, gold = lettered_choices(fact)
            assert choices[gold] == fact.value
            assert choices == list(fact.pool)


def test_tasks_load_with_enough_items(tasks: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # data must be found from any folder
    sizes = {name: len(task.eval_docs) for name, task in tasks.items()}
    sizes["toy_mmlu"] = sum(size for name, size in sizes.items() if name.startswith("toy_mmlu_"))
    assert all(200 <= sizes[name] <= 256 for name in ("toy_gsm8k", "toy_arc", "toy_hellaswag", "toy_mmlu"))
    assert 20 <= sizes["toy_text"] <= 50


def test_prompts_are_what_the_model_read_in_training(tasks: dict[str, Any]) -> None:
    task = tasks["toy_mmlu_customs"]
    doc = task.eval_docs[0]
    prompt = task.fewshot_context(doc, num_fewshot=0)
    assert prompt.startswith(f"{lettered_header('customs')}{doc['question']}\nA. ")
    assert prompt.endswith(f"\nD. {doc['choices'][3]}\nAnswer:")
    assert task.doc_to_choice(doc) == list(LETTERS)
    maths = tasks["toy_gsm8k"]
    prompt = maths.fewshot_context(maths.eval_docs[0], num_fewshot=5)
    assert prompt.count("Question: ") == 6
    assert prompt.count("\n\nQuestion: ") == 5
    assert prompt.endswith("\nAnswer:")


def test_gsm8k_conventions_are_lm_evals_own() -> None:
    ours = yaml.load((TASKS / "toy_gsm8k.yaml").read_text().replace("!function", ""), yaml.SafeLoader)
    theirs = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text())
    for key in ("doc_to_text", "doc_to_target", "metric_list", "filter_list", "num_fewshot", "output_type"):
        assert ours[key] == theirs[key], key
    assert ours["generation_kwargs"] == theirs["generation_kwargs"] | {"max_gen_toks": 80}
