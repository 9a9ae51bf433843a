"""What rules a run out is told before anything is pruned, all of it at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.evaluation.benchmarks import LMEval
from stun_exp.evaluation.records import Benchmark
from stun_exp.pipeline.preflight import Refusals, load_tokenizer

Runner = Callable[..., dict[str, Any]]
TOY = "bundled:toy"


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def benchmarks(*chosen: Benchmark) -> Any:
    return LMEval(
        benchmarks={one.task: one for one in chosen},
        limit=4,
        batch_size=4,
        backend="hf",
        vllm_python=None,
        device_map="none",
        baseline=False,
        data=None,
        run_unsafe_code=False,
    ).prepare()


def toy(task: str, metric: str, num_fewshot: int = 0, include: str | None = TOY) -> Benchmark:
    return Benchmark(task=task, include=include, num_fewshot=num_fewshot, metric=metric)


def test_mistakes_are_told_together_each_once() -> None:
    told = Refusals()
    for text in ("one", "two", "one"):
        with told.noted():
            raise ValueError(text)
    with pytest.raises(ValueError, match=r"^one\n +two$"):
        told.tell()


def test_nothing_is_told_of_a_run_without_mistakes() -> None:
    told = Refusals()
    with told.noted():
        pass
    told.tell()


def test_all_that_config_and_settings_show_is_told_at_once(runner: Runner, mixtral_copy: Path, tmp_path: Path) -> None:
    """Tokenizer, calibration, pattern, budget and export: one after the other they cost five starts."""
    change_json(mixtral_copy / "config.json", vocab_size=64, max_position_embeddings=64)
    for file in mixtral_copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="no tokenizer") as error:
        runner(
            f"model.path={mixtral_copy}",
            "calibration.sequence_length=65",
            "unstructured_pruner.pattern=3:7",
            "expert_pruner.ratio=0.9",
            "sparsity=0.95",
            "export=hf",
        )
    lines = str(error.value).split("\n")
    for what in ("no tokenizer", "3:7", "ratio=0.9", "budget=per_layer"):
        assert any(what in line for line in lines), what
    assert not (tmp_path / "run" / "journal.jsonl").exists()


def test_a_length_beyond_the_model_is_told_before_text_is_drawn(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stun_exp.calibration.protocol.Calibration.tokens", lambda *_: pytest.fail("it was drawn"))
    with pytest.raises(ValueError, match=r"calibration\.sequence_length=65: the model takes at most 64"):
        runner("calibration.sequence_length=65")


@pytest.mark.parametrize("asked", ["num_sequences=1000000000000", "sequence_length=64 num_sequences=99999999999"])
def test_text_that_no_memory_holds_is_refused(runner: Runner, asked: str) -> None:
    """And not drawn for an hour first."""
    with pytest.raises(ValueError, match=r"the text takes .* GB .* this machine has"):
        runner(*(f"calibration.{one}" for one in asked.split()))


def test_a_tokenizer_with_more_tokens_than_the_embeddings_have_rows_is_refused(mixtral_copy: Path) -> None:
    change_json(mixtral_copy / "config.json", vocab_size=32)
    tensors = load_file(mixtral_copy / "model.safetensors")
    for key in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[key] = tensors[key][:32].clone()
    save_file(tensors, mixtral_copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"numbers 64 tokens, and the embeddings have 32 rows \(vocab_size\)"):
        load_tokenizer(Checkpoint(mixtral_copy, None), False)


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"version": "1.0", "model": null}'])
def test_a_damaged_tokenizer_is_named(mixtral_copy: Path, damage: str) -> None:
    (mixtral_copy / "tokenizer.json").write_text(damage)
    with pytest.raises(ValueError, match=r"its tokenizer cannot be loaded|must hold a JSON object|not JSON"):
        load_tokenizer(Checkpoint(mixtral_copy, None), False)


def test_a_tokenizer_without_an_end_cannot_be_evaluated(tiny_model: Callable[[str], Path]) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model("mixtral"))
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"no end-of-text token, which lm-eval needs"):
        benchmarks(toy("toy_arc", "acc_norm,none")).check(tokenizer)
    benchmarks().check(tokenizer)


def test_a_metric_that_the_task_lacks_is_told_before_the_model_is_pruned(tiny_model: Callable[[str], Path]) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model("mixtral"))
    benchmarks(toy("toy_arc", "acc_norm,none"), toy("toy_gsm8k", "exact_match,strict-match", 2)).check(tokenizer)
    with pytest.raises(
        ValueError, match=r"eval\.benchmarks\.toy_arc\.metric=foo: the task has acc,none, acc_norm,none"
    ):
        benchmarks(toy("toy_arc", "foo")).check(tokenizer)


def test_more_shots_than_there_are_examples_are_told(tiny_model: Callable[[str], Path]) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model("mixtral"))
    with pytest.raises(ValueError, match=r"eval\.benchmarks\.toy_gsm8k.* num_fewshot=1000"):
        benchmarks(toy("toy_gsm8k", "exact_match,strict-match", 1000)).check(tokenizer)


TASK = {
    "task": "own",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Benchmark]:
    """(changes of its YAML) -> a benchmark of the user's own."""
    (tmp_path / "own").mkdir()
    data = tmp_path / "own" / "data.jsonl"
    data.write_text(json.dumps({"question": "a?", "choices": ["b", "c"], "answer": 0}) + "\n")

    def make(**changes: Any) -> Benchmark:
        task = TASK | {"dataset_kwargs": {"data_files": {"test": str(data)}}} | changes
        (tmp_path / "own" / "own.yaml").write_text(json.dumps(task))
        return toy("own", "acc,none", include=str(tmp_path / "own"))

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return make


@pytest.mark.parametrize(
    "mistake",
    [
        {"test_split": "validation"},
        {"output_type": "many_choices"},
        {"doc_to_text": "{{question"},
        {"metric_list": [{"metric": "no_such_metric"}]},
    ],
)
def test_a_mistake_in_an_own_task_is_no_missing_data(
    own_task: Callable[..., Benchmark], tiny_model: Callable[[str], Path], mistake: dict[str, Any]
) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model("mixtral"))
    with pytest.raises(ValueError, match=r"own") as error:
        benchmarks(own_task(**mistake)).check(tokenizer)
    assert "neither cached nor reachable" not in str(error.value)
    assert "YAML" in str(error.value) or "the task has" in str(error.value)


def test_data_of_an_own_task_that_is_not_there_is_missing(own_task: Callable[..., Benchmark], tmp_path: Path) -> None:
    missing = {"data_files": {"test": str(tmp_path / "none.jsonl")}}
    with pytest.raises(FileNotFoundError, match=r"its data is neither cached nor reachable"):
        benchmarks(own_task(dataset_kwargs=missing))


def test_a_rehearsal_changes_no_figure() -> None:
    """The tasks that were rehearsed are those that are run: their examples are drawn anew each time."""
    from lm_eval.api.model import LM

    seen: list[list[str]] = []

    class Watched(LM):
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            raise AssertionError("toy_gsm8k generates")

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            seen.append([request.args[0] for request in requests])
            return ["#### 1" for _ in requests]

        loglikelihood_rolling = loglikelihood

    from stun_exp.evaluation.harness import measure, rehearse

    benchmark = toy("toy_gsm8k", "exact_match,strict-match", 2)
    first, second = (benchmarks(benchmark).benchmarks[0][1] for _ in range(2))
    plain = measure(benchmark, first, Watched(), 8)
    rehearse(benchmark, second)
    assert measure(benchmark, second, Watched(), 8).metrics == plain.metrics
    assert seen[0] == seen[1]


def test_one_expert_a_layer_cannot_go_and_that_is_said(runner: Runner, mixtral_copy: Path) -> None:
    tensors = load_file(mixtral_copy / "model.safetensors")
    kept = {key: tensor for key, tensor in tensors.items() if ".experts." not in key or ".experts.0." in key}
    kept |= {key: tensor[:1].clone() for key, tensor in kept.items() if key.endswith("gate.weight")}
    save_file(kept, mixtral_copy / "model.safetensors", {"format": "pt"})
    change_json(mixtral_copy / "config.json", num_local_experts=1, num_experts_per_tok=1)
    with pytest.raises(ValueError, match=r"removes 1 of 3 experts.*so 0 can go"):
        runner(f"model.path={mixtral_copy}", "expert_pruner=random", "expert_pruner.ratio=0.3", "sparsity=0.5")


def test_a_router_that_chooses_more_experts_than_there_are_is_named(mixtral_copy: Path) -> None:
    change_json(mixtral_copy / "config.json", num_experts_per_tok=10)
    with pytest.raises(ValueError, match=r"layer 0: the router chooses 10 experts a token \(top_k\) of 6"):
        Checkpoint(mixtral_copy, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_local_experts": 10**12},
        {"num_hidden_layers": "3"},
        {"hidden_size": None},
        {"model_type": ["mixtral"]},
        {"quantization_config": 4},
        {"dtype": "no such"},
        {"rope_parameters": "x"},
        {"experts_per_layer": [1, True, 2]},
        {"experts_per_layer": [4]},
    ],
)
def test_a_config_that_makes_no_model_is_named(mixtral_copy: Path, changes: dict[str, Any]) -> None:
    """In one line, and at once: a billion layers took all memory."""
    change_json(mixtral_copy / "config.json", **changes)
    with pytest.raises(ValueError, match=r"config\.json"):
        Checkpoint(mixtral_copy, None)


def test_pruned_weights_have_the_dtype_of_the_source(runner: Runner, mixtral_copy: Path, tmp_path: Path) -> None:
    """What is computed in 32 bits is rounded once: a kept weight is the source's, bit for bit."""
    tensors = {key: tensor.bfloat16() for key, tensor in load_file(mixtral_copy / "model.safetensors").items()}
    save_file(tensors, mixtral_copy / "model.safetensors", {"format": "pt"})
    change_json(mixtral_copy / "config.json", dtype="bfloat16")
    runner(f"model.path={mixtral_copy}", "model.dtype=float32", "expert_pruner=none", "sparsity=0.3", "save=true")
    files = (tmp_path / "run" / "checkpoint").glob("*.safetensors")
    written = {key: tensor for file in files for key, tensor in load_file(file).items()}
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())["dtype"] == "bfloat16"
    assert all(torch.equal(written[key][written[key] != 0], tensors[key][written[key] != 0]) for key in tensors)
