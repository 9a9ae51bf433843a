"""lm-evaluation-harness on the bundled tasks: what is asked, is run and is written down; of what lies on disk."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import assemble, load_checkpoint
from stun_exp.evaluation.benchmarks import LMEval, NoEvaluation, PreparedBenchmarks
from stun_exp.evaluation.records import BUNDLED_TASKS, Benchmark, EvalResult
from stun_exp.pipeline.backend import check_backend
from stun_exp.pipeline.evaluate import EvaluatedCheckpoint, evaluate
from stun_exp.serving.vllm_process import InstalledVLLM, VLLMProcess
from stun_exp.state.cache import CacheFolder, NoCache, Store
from stun_exp.state.costs import StageCost
from stun_exp.toy import WEIGHTS

CPU = torch.device("cpu")
NOTHING_KEPT = Store(NoCache(), pytest.fail)


@pytest.fixture(scope="module")
def toy() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()


def one(task: str, shots: int, metric: str, include: str | None = BUNDLED_TASKS, **how: Any) -> LMEval:
    benchmark = Benchmark(task=task, include=include, num_fewshot=shots, metric=metric)
    off = {"vllm_python": None, "baseline": False, "data": None, "run_unsafe_code": False}
    how = {"backend": "hf", "device_map": "none", **off} | how
    return LMEval(benchmarks={task: benchmark}, limit=4, batch_size=4, **how)


def test_none_measures_nothing(toy: PreTrainedModel) -> None:
    assert NoEvaluation(baseline=False).prepare().evaluate(toy, None, CPU) == EvalResult({}, [])


def test_a_figure_carries_what_moves_it(toy: PreTrainedModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    metrics = one("toy_arc", 0, "acc_norm,none").prepare().evaluate(toy, tokenizer, CPU).metrics
    assert {"toy_arc/acc,none", "toy_arc/acc_norm,none"} == metrics.keys()
    figure = metrics["toy_arc/acc,none"]
    assert (figure.num_samples, figure.num_fewshot, figure.task_version) == (4, 0, "1.0")
    # lm-eval's closed form for a mean: the sample standard deviation over the root of the count.
    deviation = (figure.value * (1 - figure.value) * 4 / 3) ** 0.5
    assert figure.stderr == pytest.approx(deviation / 4**0.5)


def test_generation_is_exact_match_under_both_filters(toy: PreTrainedModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    evaluation = one("toy_gsm8k", 5, "exact_match,strict-match")
    metrics = evaluation.prepare().evaluate(toy, tokenizer, CPU).metrics
    assert metrics.keys() == {"toy_gsm8k/exact_match,strict-match", "toy_gsm8k/exact_match,flexible-extract"}
    assert {figure.num_fewshot for figure in metrics.values()} == {5}


def test_a_group_counts_its_subjects_items(toy: PreTrainedModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    metrics = one("toy_mmlu", 0, "acc,none").prepare().evaluate(toy, tokenizer, CPU).metrics
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
    with pytest.raises(
        FileNotFoundError, match=r"benchmark gone: its data is neither cached nor reachable.*leave it out"
    ):
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
    model = load_checkpoint(path, CPU)
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
    return LMEval(
        benchmarks={"own": benchmark},
        limit=None,
        batch_size=3,
        backend="hf",
        vllm_python=None,
        device_map="none",
        baseline=False,
        data=None,
        run_unsafe_code=False,
    )


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
    metrics = seq2seq_task(tmp_path, settings, rows).prepare().evaluate(model, tokenizer, CPU).metrics
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
    metrics = seq2seq_task(tmp_path, settings, rows).prepare().evaluate(model, tokenizer, CPU).metrics
    assert metrics["own/exact_match,none"].value == 1


# --- What is measured is what was written


def written_figures(folder: Path, device: torch.device = CPU, nf4: bool = False, **how: Any) -> EvaluatedCheckpoint:
    """Of the checkpoint in a folder: the perplexity of four texts, which any change of the weights moves."""
    benchmarks = one("toy_text", 0, "word_perplexity,none", **how).prepare()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return evaluate(benchmarks, Checkpoint(folder, None), {}, tokenizer, device, nf4, {}, NOTHING_KEPT, StageCost())


def flip_bit(file: Path, key: str) -> None:
    """The lowest exponent bit of a tensor's first number, a bfloat16: it doubles, or halves."""
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    first, _ = json.loads(content[8 : 8 + length])[key]["data_offsets"]
    content[8 + length + first] ^= 0x80
    file.write_bytes(content)


def test_one_bit_on_disk_is_seen_in_the_figures(tmp_path: Path) -> None:
    """Guards against an evaluation of a model that is still in memory, or of the source."""
    folder = Path(copytree(WEIGHTS, tmp_path / "written"))
    before, again = written_figures(folder), written_figures(folder)
    assert before.metrics == again.metrics
    flip_bit(folder / "model.safetensors", "model.norm.weight")
    after = written_figures(folder)
    name = "toy_text/word_perplexity,none"
    assert after.metrics.keys() == before.metrics.keys()
    assert after.metrics[name].value != before.metrics[name].value


def test_in_4_bits_the_figures_differ_and_the_memory_is_told() -> None:
    full, packed = written_figures(WEIGHTS), written_figures(WEIGHTS, nf4=True)
    assert not full.memory
    assert [part.part for part in packed.memory] == ["attention", "mlp", "experts", "rest"]
    name = "toy_text/word_perplexity,none"
    assert packed.metrics[name].value != full.metrics[name].value
    assert packed.metrics[name].value == pytest.approx(full.metrics[name].value, rel=0.2)


def test_without_benchmarks_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model larger than the device is pruned all the same."""
    monkeypatch.delattr("stun_exp.pipeline.evaluate.assemble")
    written = Checkpoint(WEIGHTS, None)
    assert (
        evaluate(
            NoEvaluation(baseline=False).prepare(), written, {}, None, CPU, True, {0: 0.5}, NOTHING_KEPT, StageCost()
        )
        == EvaluatedCheckpoint()
    )


# --- Several devices


def test_on_the_cpu_a_device_map_says_that_it_does_nothing() -> None:
    plain, mapped = written_figures(WEIGHTS), written_figures(WEIGHTS, device_map="auto")
    assert mapped.warnings == ["eval.device_map=auto has no effect: the model runs on the CPU"]
    assert (mapped.metrics, plain.warnings) == (plain.metrics, [])


def test_layers_in_host_memory_give_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through lm-eval, which asks the model where its inputs go. CPU stands for the GPU, "cpu" for the host."""
    names = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    places = dict.fromkeys(names, CPU) | {f"model.layers.{index}": "cpu" for index in (1, 2, 3)}
    monkeypatch.setattr("stun_exp.pipeline.evaluate.find_places", lambda *_: places)
    monkeypatch.setattr("stun_exp.pipeline.evaluate.circumstances", lambda device: {})
    parted = written_figures(WEIGHTS, torch.device("cuda"), device_map="auto")
    assert parted.metrics == written_figures(WEIGHTS).metrics
    [warning] = parted.warnings
    assert warning.startswith("eval.device_map=auto: 3 of 4 layers lie in host memory")


def test_a_first_gpu_that_takes_everything_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []

    def load(checkpoint: Checkpoint, device: torch.device, nf4: bool, places: Any) -> PreTrainedModel:
        loaded.append(places)
        return assemble(checkpoint, CPU, nf4)

    monkeypatch.setattr("stun_exp.pipeline.evaluate.assemble", load)
    monkeypatch.setattr("stun_exp.pipeline.evaluate.circumstances", lambda device: {})
    for places in ({"": 0}, {"": 1}):
        monkeypatch.setattr("stun_exp.pipeline.evaluate.find_places", lambda *_, places=places: places)
        warnings = written_figures(WEIGHTS, torch.device("cuda"), device_map="auto").warnings
        assert bool(warnings) == (places == {"": 0})
    assert loaded == [None, {"": 1}]  # the default GPU is not the one with room


# --- vLLM, which is not here: a stand-in takes its place in a Python of its own


VLLM = InstalledVLLM("python", "0.32.0", frozenset({"MixtralForCausalLM"}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "shots", "metric"),
    [("toy_text", 0, "word_perplexity,none"), ("toy_gsm8k", 2, "exact_match,strict-match")],
)
def test_vllm_reads_the_written_folder_by_itself(
    task: str, shots: int, metric: str, vllm_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures are those of transformers, of likelihoods and of generated text."""
    arguments = (Checkpoint(WEIGHTS, None), {}, AutoTokenizer.from_pretrained(WEIGHTS), CPU, False, {})
    expected = evaluate(one(task, shots, metric).prepare(), *arguments, NOTHING_KEPT, StageCost())
    monkeypatch.delattr("stun_exp.pipeline.evaluate.assemble")
    benchmarks = one(task, shots, metric, backend="vllm", vllm_python=vllm_python).prepare()
    measured = evaluate(benchmarks, *arguments, NOTHING_KEPT, StageCost())
    assert measured.metrics.keys() == expected.metrics.keys()
    for name, figure in measured.metrics.items():
        assert figure.value == pytest.approx(expected.metrics[name].value, rel=1e-3)


@pytest.mark.parametrize(("device_map", "used"), [("none", 1), ("auto", 4)])
def test_vllm_takes_one_gpu_or_all_in_the_dtype_on_disk(
    vllm_python: str, monkeypatch: pytest.MonkeyPatch, device_map: str, used: int
) -> None:
    """Left to choose, it would run 32 bits in 16."""
    loaded: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr("stun_exp.evaluation.harness.measure", lambda *_: EvalResult({}, []))
    monkeypatch.setattr(VLLMProcess, "load", lambda _, *how, **more: loaded.append((*how, more)))
    written_figures(WEIGHTS, backend="vllm", vllm_python=vllm_python, device_map=device_map)
    assert loaded == [(WEIGHTS, "bfloat16", {"tensor_parallel_size": used})]


def test_a_vllm_that_fails_is_told_in_one_line(vllm_python: str, tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=r"^eval.backend=vllm: vLLM .* could not run .*: RuntimeError: no experts;"):
        written_figures(tiny_model("olmoe"), backend="vllm", vllm_python=vllm_python)


def test_vllm_that_is_not_named_stops_before_anything_is_run() -> None:
    with pytest.raises(ValueError, match=r"eval.backend=vllm: .*pass eval.vllm_python=PATH.*or eval.backend=hf"):
        one("toy_arc", 0, "acc,none", backend="vllm").prepare()
    with pytest.raises(ValueError, match=r"eval.vllm_python=missing: no such file"):
        one("toy_arc", 0, "acc,none", backend="vllm", vllm_python="missing").prepare()


def test_figures_of_another_vllm_are_measured_anew() -> None:
    known = [PreparedBenchmarks((), vllm=vllm).depend_on() for vllm in (None, VLLM, replace(VLLM, version="0.33.0"))]
    assert [one["backend"] for one in known] == ["hf", "vllm 0.32.0", "vllm 0.33.0"]


@pytest.mark.parametrize(
    ("family", "nf4", "skips", "counts", "why"),
    [
        ("nllb-moe", False, False, (), "nllb-moe is an encoder-decoder"),
        ("arctic", False, False, (), "vLLM 0.32.0 has no ArcticForCausalLM"),
        ("mixtral", True, False, (), "model.load=nf4"),
        ("mixtral", False, True, (), "skipping=none"),
        ("mixtral", False, False, (4, 3, 4), "the plan keeps 3 to 4 experts in a layer"),
    ],
)
def test_what_vllm_cannot_run_is_refused_by_name(
    family: str, nf4: bool, skips: bool, counts: tuple[int, ...], why: str, tiny_model: Callable[[str], Path]
) -> None:
    source = Checkpoint(tiny_model(family), None)
    with pytest.raises(ValueError, match=f"eval.backend=vllm: .*{why}.*eval.backend=hf"):
        check_backend(PreparedBenchmarks((), vllm=VLLM), source, nf4, skips, counts)
    check_backend(PreparedBenchmarks(()), source, nf4, skips, counts)


def test_what_vllm_can_run_passes(mixtral: Checkpoint) -> None:
    for counts in ((), (4, 4, 4)):
        check_backend(PreparedBenchmarks((), vllm=VLLM), mixtral, nf4=False, skips=False, counts=counts)


@pytest.mark.slow
def test_the_bundled_model_knows_its_world(toy: PreTrainedModel) -> None:
    """What pruning can lose must be there first: 85 % of the maths, 80 % of each choice task, over 200 items each."""
    evaluation = LMEval(
        data=None,
        run_unsafe_code=False,
        benchmarks={
            task: Benchmark(task=task, include=BUNDLED_TASKS, num_fewshot=shots, metric=metric)
            for task, shots, metric in (
                ("toy_gsm8k", 5, "exact_match,strict-match"),
                ("toy_arc", 0, "acc,none"),
                ("toy_hellaswag", 0, "acc,none"),
                ("toy_mmlu", 0, "acc,none"),
            )
        },
        limit=None,
        batch_size=32,
        backend="hf",
        vllm_python=None,
        device_map="none",
        baseline=False,
    )
    metrics = evaluation.prepare().evaluate(toy, AutoTokenizer.from_pretrained(WEIGHTS), CPU).metrics
    for benchmark in evaluation.benchmarks.values():
        figure = metrics[f"{benchmark.task}/{benchmark.metric}"]
        assert figure.num_samples >= 200
        assert figure.value >= (0.85 if benchmark.task == "toy_gsm8k" else 0.80), (benchmark.task, figure)


# --- What was measured before


def test_equal_circumstances_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another limit, another checkpoint and other thresholds are other circumstances."""
    tokenizer, written = AutoTokenizer.from_pretrained(WEIGHTS), Checkpoint(WEIGHTS, None)
    store = Store(CacheFolder(path=str(tmp_path), max_entry_gb=1.0), pytest.fail)

    def measured(
        identity: dict[str, Any], limit: int = 4, betas: dict[int, float] | None = None, cost: StageCost | None = None
    ) -> EvaluatedCheckpoint:
        settings = one("toy_arc", 0, "acc_norm,none").model_copy(update={"limit": limit})
        return evaluate(
            settings.prepare(), written, identity, tokenizer, CPU, False, betas or {}, store, cost or StageCost()
        )

    first = measured({"model": "a"}, betas={1: 0.5})
    assert first.samples
    assert first.skips[1].total > 0
    for other in ({"identity": {"model": "b"}}, {"identity": {"model": "a"}}, {"identity": {"model": "a"}, "limit": 5}):
        measured(**{"identity": {"model": "a"}, **other})
    with monkeypatch.context() as no_model:
        no_model.delattr("stun_exp.pipeline.evaluate.assemble")
        assert measured({"model": "a"}, betas={1: 0.5}, cost=(cost := StageCost())) == first
        assert cost.charged_seconds > 0 == cost.wall_seconds
        measured({"model": "b"})
        with pytest.raises(NameError):
            measured({"model": "a"}, betas={1: 0.25})


def test_items_add_up_to_the_figure(toy: PreTrainedModel) -> None:
    """The samples are what the headline is the mean of; two runs give an item one name."""
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    prepared = one("toy_mmlu", 0, "acc,none").prepare()
    figures, again = (prepared.evaluate(toy, tokenizer, CPU) for _ in range(2))
    assert figures.samples == again.samples
    values = [sample.value for sample in figures.samples if sample.metric == "acc,none"]
    assert {sample.benchmark for sample in figures.samples} == {"toy_mmlu"}
    assert (
        len({sample.hash for sample in figures.samples})
        == len(values)
        == figures.metrics["toy_mmlu/acc,none"].num_samples
    )
    assert sum(values) / len(values) == pytest.approx(figures.metrics["toy_mmlu/acc,none"].value)


def test_items_of_a_perplexity_are_negative_log_likelihoods(toy: PreTrainedModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    figures = one("toy_text", 0, "byte_perplexity,none").prepare().evaluate(toy, tokenizer, CPU)
    nats = [sample.value for sample in figures.samples if sample.metric == "bits_per_byte,none"]
    assert len(nats) == 4
    assert min(nats) > 0
