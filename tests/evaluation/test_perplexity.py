"""Perplexity by tokens, against the loop that pruning papers use."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stun_exp.evaluation.perplexity import LoadedText, load_text
from stun_exp.evaluation.records import TokenPerplexity


def benchmark(path: str | None = None, **settings: Any) -> TokenPerplexity:
    default: dict[str, Any] = {
        "task": "wikitext2",
        "dataset": "nobody/nothing",
        "subset": None,
        "split": "test",
        "column": "text",
        "path": path,
        "window": 16,
        "num_fewshot": 0,
        "metric": "token_perplexity,none",
    }
    return TokenPerplexity(**default | settings)


def text(words: int) -> str:
    return " ".join(f"w{i * i % 61 + 1}" for i in range(words))


@pytest.fixture
def lm(tiny_model: Callable[[str], Path]) -> Any:
    """What lm-eval makes of the tiny Llama, as far as it is used here."""
    folder = tiny_model("llama")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return SimpleNamespace(model=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size_per_gpu=2)


def test_it_is_the_perplexity_of_pruning_papers(lm: Any) -> None:
    """As in Wanda's lib/eval.py: window after window, what is left over is not looked at."""
    found = LoadedText(text(90)).measure(benchmark(), lm, None)
    metric = found.metrics["wikitext2/token_perplexity,none"]
    ids = lm.tokenizer(text(90), return_tensors="pt").input_ids
    sums = []
    for i in range(5):
        batch = ids[:, 16 * i : 16 * (i + 1)]
        with torch.no_grad():
            logits = lm.model(batch).logits
        loss = torch.nn.CrossEntropyLoss()(logits[:, :-1].reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1))
        sums.append(loss * 16)
    assert metric.value == pytest.approx(float(torch.exp(torch.stack(sums).sum() / (5 * 16))), rel=1e-5)
    assert metric.num_samples == len(found.samples) == 5
    mean = sum(sample.value for sample in found.samples) / 5
    assert metric.value == pytest.approx(torch.tensor(mean).exp().item(), rel=1e-5)
    assert metric.stderr is not None


def test_a_limit_takes_the_first_windows(lm: Any) -> None:
    whole = LoadedText(text(90)).measure(benchmark(), lm, None)
    limited = LoadedText(text(90)).measure(benchmark(), lm, 2)
    assert limited.samples == whole.samples[:2]


def test_a_text_shorter_than_a_window_is_refused(lm: Any) -> None:
    with pytest.raises(ValueError, match=r"eval.benchmarks.wikitext2.window=16: the text has 15 tokens"):
        LoadedText(text(15)).rehearse(benchmark(), lm.tokenizer)


def test_a_file_stands_for_the_dataset(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(text(20))
    assert load_text(benchmark(str(tmp_path / "text"))).text == text(20)


def test_a_dataset_that_is_not_to_be_had_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(FileNotFoundError, match=r"benchmark wikitext2: nobody/nothing is neither cached nor reachable"):
        load_text(benchmark())
