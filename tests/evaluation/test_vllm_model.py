"""vLLM is asked what lm-eval's own backend for it asks, and the answers are read as it reads them."""

import importlib.metadata
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from stun_exp.evaluation.harness import load, measure, quiet
from stun_exp.evaluation.records import BUNDLED_TASKS, Benchmark
from stun_exp.toy import WEIGHTS

LONGEST = 200
"""Shorter than some of the questions, which are then cut."""


def scores(ids: list[int]) -> list[tuple[float, bool]]:
    """Of any ids, the same each time; some are the likeliest."""
    return [(-((7 * previous + token) % 11) / 8, token % 3 > 0) for previous, token in pairwise(ids)]


def text_after(ids: list[int]) -> str:
    return f" so it is {sum(ids) % 7}. #### {sum(ids) % 5}\n\nQuestion: 1"


class Engine:
    """What lm-eval's backend takes for vllm.LLM."""

    def __init__(self, asked: list[Any]):
        self.asked = asked
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=LONGEST))

    def generate(self, prompts: list[Any], sampling_params: list[dict[str, Any]], **_: Any) -> list[Any]:
        return [self._one(p["prompt_token_ids"], s) for p, s in zip(prompts, sampling_params, strict=True)]

    def _one(self, ids: list[int], sampling: dict[str, Any]) -> Any:
        if "prompt_logprobs" not in sampling:
            self.asked.append((ids, sampling))
            return SimpleNamespace(outputs=[SimpleNamespace(text=text_after(ids))])
        self.asked.append((ids, None))
        pairs = zip(ids[1:], scores(ids), strict=True)
        return SimpleNamespace(
            prompt_logprobs=[None, *({token: own} | ({} if best else {-1: own + 1}) for token, (own, best) in pairs)]
        )


class Process:
    """What stands for our own process."""

    max_length = LONGEST

    def __init__(self, asked: list[Any]):
        self.asked = asked

    def log_probabilities(self, prompts: list[list[int]]) -> list[list[tuple[float, bool]]]:
        self.asked += [(ids, None) for ids in prompts]
        return [scores(ids) for ids in prompts]

    def generate(self, prompts: list[list[int]], sampling: list[dict[str, Any]]) -> list[str]:
        self.asked += list(zip(prompts, sampling, strict=True))
        return [text_after(ids) for ids in prompts]


@pytest.fixture(scope="module")
def their_model() -> Iterator[tuple[Any, list[Any]]]:
    """A model of lm-eval's class, which registers itself once, and what it asks."""
    asked: list[Any] = []
    vllm, lora, request, tokenizers = (ModuleType(n) for n in ("vllm", "lora", "request", "tokenizers"))
    vllm.__spec__ = ModuleSpec("vllm", None)
    vars(vllm).update(LLM=lambda **_: Engine(asked), SamplingParams=dict, TokensPrompt=dict)
    vars(request).update(LoRARequest=None)
    vars(tokenizers).update(get_tokenizer=lambda path, **_: AutoTokenizer.from_pretrained(path))
    names = {"vllm": vllm, "vllm.lora": lora, "vllm.lora.request": request, "vllm.tokenizers": tokenizers}
    own = importlib.metadata.version
    with pytest.MonkeyPatch.context() as patch:
        for name, module in names.items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(importlib.metadata, "version", lambda name: "0.8.0" if name == "vllm" else own(name))
        from lm_eval.models.vllm_causallms import VLLM

        yield quiet(VLLM)(pretrained=str(WEIGHTS)), asked


@pytest.mark.parametrize(
    ("task", "shots", "metric"),
    [("toy_text", 0, "word_perplexity,none"), ("toy_gsm8k", 3, "exact_match,strict-match"), ("toy_arc", 0, "acc,none")],
)
def test_requests_and_figures_are_those_of_lm_evals_own_backend(
    task: str, shots: int, metric: str, their_model: tuple[Any, list[Any]]
) -> None:
    """Only the order in which it asks is its own."""
    from stun_exp.evaluation.vllm_model import VLLMModel

    theirs, they_asked = their_model
    they_asked.clear()
    we_asked: list[Any] = []
    ours = quiet(VLLMModel)(Process(we_asked), AutoTokenizer.from_pretrained(WEIGHTS))
    benchmark = Benchmark(task=task, include=BUNDLED_TASKS, num_fewshot=shots, metric=metric)
    expected, measured = (measure(benchmark, load([benchmark], None, False)[0], lm, limit=6) for lm in (theirs, ours))
    assert sorted(we_asked, key=repr) == sorted(they_asked, key=repr)
    assert any(len(ids) >= LONGEST - 256 for ids, _ in we_asked)
    assert measured.metrics == pytest.approx(expected.metrics) or measured.metrics == expected.metrics
    assert [sample.value for sample in measured.samples] == pytest.approx([sample.value for sample in expected.samples])


def test_a_continuation_is_scored_to_its_last_token_only() -> None:
    """The context of 3 tokens is cut to 1 by a limit of 4 with the one that is generated; an empty one scores 0."""
    from stun_exp.evaluation.vllm_model import VLLMModel

    asked: list[Any] = []
    process = Process(asked)
    process.max_length = 4
    model = VLLMModel(process, AutoTokenizer.from_pretrained(WEIGHTS))
    ((value, _), empty) = model._loglikelihood_tokens([(None, [1, 2, 3], [4, 5]), (None, [1, 2], [])])
    assert [ids for ids, _ in asked] == [[3, 4, 5], [1, 2]]
    assert value == sum(own for own, _ in scores([3, 4, 5]))
    assert empty == (0, True)
