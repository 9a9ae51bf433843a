"""Perplexity by tokens in windows side by side, as pruning papers print it; lm-eval has it by words.

Shapes: B windows of a batch, T tokens of a window, V vocabulary, W windows.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stun_exp.evaluation.records import EvalResult, Metric, Sample, TokenPerplexity
from stun_exp.utils.paths import expanded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSION = "1"
"""Of the way it is measured."""


@dataclass(frozen=True)
class LoadedText:
    """A text, ready to be measured on."""

    text: str

    def digests(self) -> dict[str, str]:
        """Of all that the figure depends on besides the settings, by name."""
        return {"text": sha256(self.text.encode()).hexdigest(), "version": VERSION}

    def rehearse(self, benchmark: TokenPerplexity, tokenizer: Any) -> None:
        """ValueError if there is not one whole window."""
        windows_WT(self.text, tokenizer, benchmark)

    def measure(self, benchmark: TokenPerplexity, lm: Any, limit: int | None) -> EvalResult:
        """exp of the mean negative log-likelihood of a token, the first of each window left out.

        Its standard error is by the delta method, over windows.
        """
        windows = windows_WT(self.text, lm.tokenizer, benchmark)[:limit]
        nll_W = torch.cat(list(_nll_B(lm.model, windows, lm.batch_size_per_gpu)))
        mean = float(nll_W.mean())
        perplexity = torch.tensor(mean, dtype=torch.float64).exp().item()
        stderr = perplexity * float(nll_W.std()) / len(nll_W) ** 0.5 if len(nll_W) > 1 else None
        samples = [
            Sample(benchmark.task, benchmark.task, benchmark.metric, number, _shown(window_T), float(nll))
            for number, (window_T, nll) in enumerate(zip(windows, nll_W, strict=True))
        ]
        metric = Metric(perplexity, stderr, len(windows), 0, VERSION)
        return EvalResult({f"{benchmark.task}/{benchmark.metric}": metric}, samples)


def load_text(benchmark: TokenPerplexity) -> LoadedText:
    """The benchmark's text; FileNotFoundError for one that is neither cached nor reachable."""
    if benchmark.path is not None:
        return LoadedText(expanded(benchmark.path).read_text(encoding="utf-8"))
    from datasets import load_dataset

    try:
        rows = load_dataset(benchmark.dataset, benchmark.subset, split=benchmark.split)
    except Exception as error:  # the datasets library wraps a missing network in many classes
        raise FileNotFoundError(
            f"benchmark {benchmark.task}: {benchmark.dataset} is neither cached nor reachable "
            f"({type(error).__name__}); fetch it once with a network, or pass "
            f"eval.benchmarks.{benchmark.task}.path=FILE, its text in one file"
        ) from error
    return LoadedText("\n\n".join(rows[benchmark.column]))


def windows_WT(text: str, tokenizer: Any, benchmark: TokenPerplexity) -> Tensor:
    """The text's tokens, cut into whole windows side by side; ValueError if there is not one."""
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)  # that the text is long
    ids = torch.tensor(tokenizer(text)["input_ids"])
    whole = len(ids) // benchmark.window
    if not whole:
        raise ValueError(
            f"eval.benchmarks.{benchmark.task}.window={benchmark.window}: the text has {len(ids)} tokens; lower it, or "
            "give a longer text"
        )
    return ids[: whole * benchmark.window].view(whole, benchmark.window)


@torch.inference_mode()
def _nll_B(model: "PreTrainedModel", windows: Tensor, batch_size: int) -> Iterator[Tensor]:
    """The mean negative log-likelihood of a token in each window, in nats."""
    for ids_BT in torch.split(windows, batch_size):
        logits_BTV = model(input_ids=ids_BT.to(model.device), use_cache=False).logits
        losses_BT = torch.nn.functional.cross_entropy(
            logits_BTV[:, :-1].float().transpose(1, 2), ids_BT[:, 1:].to(logits_BTV.device), reduction="none"
        )
        yield losses_BT.double().mean(1).cpu()


def _shown(window_T: Tensor) -> str:
    return sha256(window_T.numpy().tobytes()).hexdigest()[:16]
