"""lm-evaluation-harness on the bundled tasks, with a random model: what is asked, is run and is written down."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from stun_exp.disk.load import load_pruned
from stun_exp.evaluation import BUNDLED, Benchmark, LMEval, NoEvaluation
from stun_exp.toy import WEIGHTS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def toy() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()


def one(task: str, shots: int, metric: str, include: str | None = BUNDLED) -> LMEval:
    benchmark = Benchmark(task=task, include=include, num_fewshot=shots, metric=metric)
    return LMEval(benchmarks={task: benchmark}, limit=4, batch_size=4)


def test_none_measures_nothing(toy: PreTrainedModel) -> None:
    assert NoEvaluation().prepare().evaluate(toy, None, CPU) == {}


def test_a_figure_carries_what_moves_it(toy: PreTrainedModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    metrics = one("toy_arc", 0, "acc_norm,none").prepare().evaluate(toy, tokenizer, CPU)
    assert {"toy_arc/acc,none", "toy_arc/acc_norm,none"} == metrics.keys()
    figure = metrics["toy_arc/acc,none"]
    assert (figure.num_samples, figure.num_fewshot, figure.task_version) == (4, 0, "1.0")
    # lm-eval's closed form for a mean: the sample standard deviation over the root of the count.
    deviation = (figure.value * (1 - figure.value) * 4 / 3) ** 0.5
    assert figure.stderr == pytest.approx(deviation / 4**0.5)


def test_generation_is_exact_match_under_both_filters(toy: PreTrainedModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    evaluation = one("toy_gsm8k", 5, "exact_match,strict-match")
    metrics = evaluation.prepare().evaluate(toy, tokenizer, CPU)
    assert metrics.keys() == {"toy_gsm8k/exact_match,strict-match", "toy_gsm8k/exact_match,flexible-extract"}
    assert {figure.num_fewshot for figure in metrics.values()} == {5}


def test_a_group_counts_its_subjects_items(toy: PreTrainedModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    metrics = one("toy_mmlu", 0, "acc,none").prepare().evaluate(toy, tokenizer, CPU)
    subjects = [figure for key, figure in metrics.items() if key.startswith("toy_mmlu_")]
    assert metrics["toy_mmlu/acc,none"].num_samples == sum(figure.num_samples for figure in subjects) >= 8


def test_unknown_task_and_metric_say_what_there_is(toy: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"bundled:toy has no task 'toy_math'"):
        one("toy_math", 0, "acc,none").prepare()
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    with pytest.raises(ValueError, match=r"metric=accuracy: the task has acc,none, acc_norm,none"):
        one("toy_arc", 0, "accuracy").prepare().evaluate(toy, tokenizer, CPU)


def test_data_that_is_not_to_be_had_stops_before_pruning(tmp_path: Path) -> None:
    (tmp_path / "gone.yaml").write_text(
        "task: gone\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: not-there.jsonl\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: a\ndoc_to_choice: [a, b]\ndoc_to_target: 0\n"
    )
    with pytest.raises(FileNotFoundError, match=r"benchmark gone: its data is neither cached nor reachable.*lm-eval"):
        one("gone", 0, "acc,none", include=str(tmp_path)).prepare()


def test_shots_that_a_task_pins_are_not_overridden_in_silence(toy: PreTrainedModel, tmp_path: Path) -> None:
    """lm-eval ignores --num_fewshot for a task whose own file says 0, and only logs it."""
    (tmp_path / "data.jsonl").write_text('{"q": "a", "gold": 0}\n' * 8)
    (tmp_path / "pinned.yaml").write_text(
        f"task: pinned\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/data.jsonl\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: [a, b]\n"
        "doc_to_target: gold\nnum_fewshot: 0\nmetric_list:\n  - metric: acc\n"
    )
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    with pytest.raises(ValueError, match=r"num_fewshot=2: lm-eval used \{'pinned': 0\}"):
        one("pinned", 2, "acc,none", include=str(tmp_path)).prepare().evaluate(toy, tokenizer, CPU)


# --- Encoder-decoders

START = 56


@pytest.fixture(params=["switch_transformers", "nllb-moe"])
def translator(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> tuple[PreTrainedModel, Any]:
    """A tiny encoder-decoder and its tokenizer: w0 ... w63 are the ids 0 ... 63, 0 ends and pads, START begins."""
    path = tiny_model(request.param)
    model = load_pruned(path, CPU)
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = START
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"cls_token": f"w{START}"})  # so that it is no part of what is said
    return model, tokenizer


def words(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def seq2seq_task(folder: Path, settings: str, rows: list[dict[str, Any]]) -> LMEval:
    """A task of its own YAML and data, whose questions are of different length."""
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.yaml").write_text(
        f"task: own\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder}/data.jsonl\n"
        f"test_split: test\ndoc_to_text: '{{{{q}}}}'\n{settings}"
    )
    metric = "exact_match,none" if "exact_match" in settings else "acc,none"
    benchmark = Benchmark(task="own", include=str(folder), num_fewshot=0, metric=metric)
    return LMEval(benchmarks={"own": benchmark}, limit=None, batch_size=3)


QUESTIONS = [list(range(first, first + 2 + first % 5)) for first in range(1, 9)]


def test_an_encoder_decoder_scores_targets_given_sources(
    translator: tuple[PreTrainedModel, Any], tmp_path: Path
) -> None:
    """The encoder reads the question, the decoder the answer behind its start; by hand without padding.

    Each item's gold is the answer that is likelier by hand, so any other way to score them finds fewer.
    """
    model, tokenizer = translator
    answers = [[[20 + i, 30 + i], [40 + i]] for i in range(len(QUESTIONS))]

    def log_likelihood(question: list[int], answer: list[int]) -> float:
        with torch.inference_mode():
            read = torch.tensor([[START, *answer[:-1]]])
            logits = model(input_ids=torch.tensor([question]), decoder_input_ids=read).logits[0]
        return float(logits.log_softmax(-1)[range(len(answer)), answer].sum())

    gold = [
        int(log_likelihood(question, second) > log_likelihood(question, first))
        for question, (first, second) in zip(QUESTIONS, answers, strict=True)
    ]
    rows = [
        {"q": words(question), "a": words(first), "b": words(second), "gold": label}
        for question, (first, second), label in zip(QUESTIONS, answers, gold, strict=True)
    ]
    settings = (
        "output_type: multiple_choice\ndoc_to_choice: '{{[a, b]}}'\ndoc_to_target: gold\n"
        "target_delimiter: ''\nmetric_list:\n  - metric: acc\n"
    )
    metrics = seq2seq_task(tmp_path, settings, rows).prepare().evaluate(model, tokenizer, CPU)
    assert metrics["own/acc,none"].value == 1


def test_an_encoder_decoder_generates_from_the_source(translator: tuple[PreTrainedModel, Any], tmp_path: Path) -> None:
    """Greedy, with the KV cache, until w63 or six words; by hand without a cache. Nothing is cut off the front."""
    model, tokenizer = translator

    def greedy(question: list[int]) -> list[int]:
        read = [START]
        with torch.inference_mode():
            while len(read) < 7:
                logits = model(input_ids=torch.tensor([question]), decoder_input_ids=torch.tensor([read])).logits
                read.append(int(logits[0, -1].argmax()))
        return read[1:]

    answers = [greedy(question) for question in QUESTIONS]
    said = [answer[: answer.index(0)] if 0 in answer else answer for answer in answers]
    assert any(said)
    rows = [{"q": words(question), "a": words(answer)} for question, answer in zip(QUESTIONS, said, strict=True)]
    settings = (
        "output_type: generate_until\ndoc_to_target: '{{a}}'\ngeneration_kwargs:\n  until: ['w63']\n"
        "  max_length: 7\nmetric_list:\n  - metric: exact_match\n"
    )
    metrics = seq2seq_task(tmp_path, settings, rows).prepare().evaluate(model, tokenizer, CPU)
    assert metrics["own/exact_match,none"].value == 1


@pytest.mark.slow
def test_the_bundled_model_knows_its_world(toy: PreTrainedModel) -> None:
    """What pruning can lose must be there first: 85 % of the maths, 80 % of each choice task, over 200 items each."""
    evaluation = LMEval(
        benchmarks={
            task: Benchmark(task=task, include=BUNDLED, num_fewshot=shots, metric=metric)
            for task, shots, metric in (
                ("toy_gsm8k", 5, "exact_match,strict-match"),
                ("toy_arc", 0, "acc,none"),
                ("toy_hellaswag", 0, "acc,none"),
                ("toy_mmlu", 0, "acc,none"),
            )
        },
        limit=None,
        batch_size=32,
    )
    metrics = evaluation.prepare().evaluate(toy, AutoTokenizer.from_pretrained(WEIGHTS), CPU)
    for benchmark in evaluation.benchmarks.values():
        figure = metrics[f"{benchmark.task}/{benchmark.metric}"]
        assert figure.num_samples >= 200
        assert figure.value >= (0.85 if benchmark.task == "toy_gsm8k" else 0.80), (benchmark.task, figure)
