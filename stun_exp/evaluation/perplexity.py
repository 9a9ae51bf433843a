"""Perplexity by tokens in windows side by side, as pruning papers print it; lm-eval has it by words.

Shapes: B windows of a batch, T tokens of a window, V vocabulary, W windows.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stun_exp.data.missing import Missing, MissingData
from stun_exp.data.reading import NotHere, read_set
from stun_exp.data.sets import DataSet, folders_of, places
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

    @property
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


def load_text(benchmark: TokenPerplexity, data: Path | None = None) -> LoadedText:
    """The benchmark's text, from its file, a folder of data sets, or where the hub's clients keep them.

    MissingData for one that is neither on this machine nor to be had.
    """
    own = None if benchmark.path is None else expanded(benchmark.path)
    if own is not None and own.is_file():
        return LoadedText(own.read_text(encoding="utf-8"))
    wanted = DataSet(benchmark.dataset, benchmark.subset)
    folders = [own] if own is not None else list(folders_of(wanted.name, data))
    try:
        splits = read_set(wanted, folders, alone=True)
    except NotHere as why:
        raise MissingData([Missing(str(wanted), "eval", places("eval.data", data), str(why))]) from why
    if benchmark.split not in splits:
        raise ValueError(
            f"benchmark {benchmark.task}: {wanted} has no split {benchmark.split!r} (it has {', '.join(splits)}); add "
            "the file of that split, or fetch the data set whole (stun fetch)"
        )
    return LoadedText("\n\n".join(splits[benchmark.split][benchmark.column]))


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
