"""Benchmarks through lm-evaluation-harness: its tasks, its metrics, its standard errors."""

import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stun_exp.config.component import Component
from stun_exp.evaluation.harness import Loaded, digest, load, measure, quiet, rehearse
from stun_exp.evaluation.records import Benchmark, EvalResult
from stun_exp.serving.vllm_process import InstalledVLLM, VLLMError, VLLMProcess, find_vllm

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Backend = Literal["hf", "vllm"]
DeviceMap = Literal["none", "auto"]


class NoEvaluation(Component):
    """Runs no benchmark, whatever it is told to run them on, so that `eval=none` can be typed over any other choice."""

    baseline: bool

    def prepare(self) -> "PreparedBenchmarks":
        return PreparedBenchmarks(())


class LMEval(Component):
    """Several benchmarks on one model."""

    benchmarks: dict[str, Benchmark]
    limit: int | None = Field(ge=1)
    """Items of each task, the first ones; null for all. For trials only: lm-eval's numbers need all."""
    batch_size: int = Field(ge=1)
    """Moves the numbers a little: sequences in a batch are padded to the longest. vLLM forms batches of its own."""
    backend: Backend
    """What runs the model: transformers, or vLLM, for decoders in 16 or 32 bits that keep equally many experts in every
    layer."""
    vllm_python: str | None
    """The Python of an environment that has vLLM, for backend=vllm."""
    device_map: DeviceMap
    """`auto` spreads the model over all GPUs, and over host memory if transformers runs it; `none` takes one device."""
    baseline: bool
    """Whether the unpruned model is measured too: once for all runs that share a cache."""

    def prepare(self) -> "PreparedBenchmarks":
        """The benchmarks with their data.

        ValueError if the backend is not installed, FileNotFoundError for data that is neither cached nor reachable.
        """
        vllm = self._vllm() if self.backend == "vllm" else None
        benchmarks = tuple((benchmark, load(benchmark)) for benchmark in self.benchmarks.values())
        return PreparedBenchmarks(benchmarks, self.limit, self.batch_size, vllm, self.device_map, self.baseline)

    def _vllm(self) -> InstalledVLLM:
        if self.vllm_python is None:
            raise ValueError(
                "eval.backend=vllm: vLLM wants an environment of its own; pass eval.vllm_python=PATH, its Python "
                "(.clients/vllm/bin/python, if `make clients` made it), or eval.backend=hf"
            )
        return find_vllm(self.vllm_python, "eval.vllm_python")


@dataclass(frozen=True)
class PreparedBenchmarks:
    """Benchmarks whose data is at hand, ready to be run on a model."""

    benchmarks: "tuple[tuple[Benchmark, Loaded], ...]"
    limit: int | None = None
    batch_size: int = 1
    vllm: InstalledVLLM | None = None
    """What runs the model; None for transformers."""
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
            rehearse(benchmark, loaded)

    def depend_on(self) -> dict[str, Any]:
        """All that the figures depend on besides the model and the device, as plain data."""
        return {
            "lm-eval": version("lm-eval"),
            "limit": self.limit,
            "batch size": self.batch_size,
            "backend": f"vllm {self.vllm.version}" if self.vllm else "hf",
            "benchmarks": [
                {
                    "settings": benchmark.model_dump(),
                    "tasks": {name: digest(task) for name, task in found.tasks.items()},
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

    def evaluate_in_vllm(self, folder: Path, tokenizer: Any, dtype: "torch.dtype", num_gpus: int) -> EvalResult:
        """The same of a model on disk, which vLLM reads by itself and spreads over GPUs."""
        from stun_exp.evaluation.vllm_model import VLLMModel

        assert self.vllm is not None
        try:
            with VLLMProcess(self.vllm.python) as process:
                process.load(folder, str(dtype).removeprefix("torch."), tensor_parallel_size=num_gpus)
                return self._measure(quiet(VLLMModel)(process, tokenizer))
        except VLLMError as error:
            raise ValueError(
                f"eval.backend=vllm: vLLM {self.vllm.version} could not run {folder}: {error}; pass eval.backend=hf"
            ) from error

    def _measure(self, lm: Any) -> EvalResult:
        logging.getLogger("lm_eval").setLevel(logging.WARNING)  # such as a context that had to be cut
        result = EvalResult({}, [])
        for benchmark, loaded in self.benchmarks:
            found = measure(benchmark, loaded, lm, self.limit)
            result.metrics.update(found.metrics)
            result.samples.extend(found.samples)
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        return result
