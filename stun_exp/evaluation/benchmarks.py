"""Benchmarks through lm-evaluation-harness: its tasks, its metrics, its standard errors."""

import logging
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stun_exp.config.component import Component
from stun_exp.evaluation.harness import load, quiet
from stun_exp.evaluation.records import Benchmark, EvalResult, TokenPerplexity

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Backend = Literal["hf", "vllm"]
DeviceMap = Literal["none", "auto"]


def _is_own(benchmark: Any) -> bool:
    return isinstance(benchmark, TokenPerplexity)


def _loaded(benchmark: Benchmark | TokenPerplexity) -> Any:
    """The benchmark's data: lm-eval's, or a text."""
    if isinstance(benchmark, Benchmark):
        return load(benchmark)
    from stun_exp.evaluation.perplexity import load_text

    return load_text(benchmark)


class NoEvaluation(Component):
    """Runs no benchmark, whatever it is told to run them on, so that `eval=none` can be typed over any other choice."""

    baseline: bool

    def prepare(self) -> "PreparedBenchmarks":
        return PreparedBenchmarks(())


class LMEval(Component):
    """Several benchmarks on one model."""

    benchmarks: dict[str, Benchmark | TokenPerplexity]
    limit: int | None = Field(ge=1)
    """Items of each task, the first ones; null for all. For trials only: lm-eval's numbers need all."""
    batch_size: int = Field(ge=1)
    """Moves the numbers a little: sequences in a batch are padded to the longest. vLLM forms batches of its own."""
    backend: Backend
    """What runs the model: transformers, or vLLM, for decoders in 16 or 32 bits that keep equally many experts in every
    layer."""
    device_map: DeviceMap
    """`auto` spreads the model over all GPUs, and over host memory if transformers runs it; `none` takes one device."""
    baseline: bool
    """Whether the unpruned model is measured too: once for all runs that share a cache."""

    def prepare(self) -> "PreparedBenchmarks":
        """The benchmarks with their data.

        ValueError if the backend is not installed, FileNotFoundError for data that is neither cached nor reachable.
        """
        if self.backend == "vllm" and find_spec("vllm") is None:
            raise ValueError("eval.backend=vllm: vLLM is not installed; pip install vllm, or pass eval.backend=hf")
        if self.backend == "vllm" and (own := [name for name, one in self.benchmarks.items() if _is_own(one)]):
            raise ValueError(
                f"eval.backend=vllm: {', '.join(own)} is measured with transformers alone; pass eval.backend=hf, or "
                f"leave it out with ~eval.benchmarks.{own[0]}"
            )
        benchmarks = tuple((benchmark, _loaded(benchmark)) for benchmark in self.benchmarks.values())
        return PreparedBenchmarks(benchmarks, self.limit, self.batch_size, self.backend, self.device_map, self.baseline)


@dataclass(frozen=True)
class PreparedBenchmarks:
    """Benchmarks whose data is at hand, ready to be run on a model."""

    benchmarks: tuple[tuple[Any, Any], ...]
    """Each with what was loaded for it: lm-eval's tasks, or a text."""
    limit: int | None = None
    batch_size: int = 1
    backend: Backend = "hf"
    device_map: DeviceMap = "none"
    baseline: bool = False

    def check(self, tokenizer: Any) -> None:
        """ValueError if the benchmarks could not be measured with this tokenizer, or not as they are set."""
        if self.benchmarks and tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer has no end-of-text token, which lm-eval needs; set eos_token in the model's "
                "tokenizer_config.json, or pass eval=none"
            )
        for benchmark, loaded in self.benchmarks:
            loaded.rehearse(benchmark, tokenizer)

    def depend_on(self) -> dict[str, Any]:
        """All that the figures depend on besides the model and the device, as plain data."""
        return {
            "lm-eval": version("lm-eval"),
            "limit": self.limit,
            "batch size": self.batch_size,
            "backend": self.backend,
            "benchmarks": [
                {
                    "settings": benchmark.model_dump(),
                    "tasks": found.digests(),
                }
                for benchmark, found in self.benchmarks
            ],
        }

    def evaluate(self, model: "PreTrainedModel", tokenizer: Any, device: "torch.device") -> EvalResult:
        """Every metric that the tasks define of a model in memory."""
        if not self.benchmarks:
            return EvalResult({}, [])
        from lm_eval.models.huggingface import HFLM

        kind = "seq2seq" if model.config.is_encoder_decoder else "causal"
        lm = quiet(HFLM)(
            pretrained=model, backend=kind, tokenizer=tokenizer, batch_size=self.batch_size, device=str(device)
        )
        return self._measure(lm)

    def evaluate_in_vllm(self, folder: Path, dtype: "torch.dtype", num_gpus: int) -> EvalResult:
        """The same of a model on disk, with its own tokenizer, that vLLM reads by itself and spreads over GPUs."""
        from lm_eval.models.vllm_causallms import VLLM

        # Left to choose, vLLM would run 32 bits in 16.
        dtype_name = str(dtype).removeprefix("torch.")
        return self._measure(quiet(VLLM)(pretrained=str(folder), dtype=dtype_name, tensor_parallel_size=num_gpus))

    def _measure(self, lm: Any) -> EvalResult:
        logging.getLogger("lm_eval").setLevel(logging.WARNING)  # such as a context that had to be cut
        result = EvalResult({}, [])
        for benchmark, loaded in self.benchmarks:
            found = loaded.measure(benchmark, lm, self.limit)
            result.metrics.update(found.metrics)
            result.samples.extend(found.samples)
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        return result
