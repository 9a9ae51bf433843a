"""Benchmarks through lm-evaluation-harness: its tasks, its metrics, its standard errors."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from stun_exp.config.component import Component
from stun_exp.evaluation.harness import defined, load, quiet
from stun_exp.evaluation.records import Benchmark, EvalResult, TokenPerplexity
from stun_exp.evaluation.tasks import Definition
from stun_exp.serving.vllm_process import InstalledVLLM, VLLMError, VLLMProcess, find_vllm
from stun_exp.utils.paths import expanded, is_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Backend = Literal["hf", "vllm"]
DeviceMap = Literal["none", "auto"]


def _is_own(benchmark: Any) -> bool:
    return isinstance(benchmark, TokenPerplexity)


class NoEvaluation(Component):
    """Runs no benchmark, whatever it is told to run them on, so that `eval=none` can be typed over any other choice."""

    baseline: bool

    def definitions(self) -> list[Definition]:
        return []

    def prepare(self) -> "PreparedBenchmarks":
        return PreparedBenchmarks(())


class LMEval(Component):
    """Several benchmarks on one model."""

    benchmarks: dict[str, Benchmark | TokenPerplexity]
    limit: int | None = Field(ge=1)
    """Items of each task, the first ones; null for all. For trials only: lm-eval's numbers need all."""
    data: str | None
    """A folder with the data sets, by name (owner/name, name, or as the hub's cache has them); null for that cache."""
    run_unsafe_code: bool
    """Consent to benchmarks that run the programs which the model writes, with all rights of the user."""
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

    @field_validator("data")
    @classmethod
    def _is_there(cls, data: str | None) -> str | None:
        """`data`, if a folder is where it says."""
        if data is not None and not is_folder(expanded(data)):
            raise ValueError("no such folder; give one with a folder for each data set, or null for the hub's cache")
        return data

    @property
    def data_folder(self) -> Path | None:
        return None if self.data is None else expanded(self.data)

    def definitions(self) -> list[Definition]:
        """What the tasks of all benchmarks say of themselves; ValueError if there is no such task."""
        tasks = [one for one in self.benchmarks.values() if isinstance(one, Benchmark)]
        texts = [one for one in self.benchmarks.values() if isinstance(one, TokenPerplexity)]
        return [*defined(tasks), *(one.definition for one in texts)]

    def prepare(self) -> "PreparedBenchmarks":
        """The benchmarks with their data.

        ValueError if the backend is not installed, FileNotFoundError for data that is neither cached nor reachable.
        """
        if self.backend == "vllm" and (own := [name for name, one in self.benchmarks.items() if _is_own(one)]):
            raise ValueError(
                f"eval.backend=vllm: {', '.join(own)} is measured with transformers alone; pass eval.backend=hf, or "
                f"leave it out with ~eval.benchmarks.{own[0]}"
            )
        vllm = self._vllm() if self.backend == "vllm" else None
        found = tuple(self._loaded())
        return PreparedBenchmarks(found, self.limit, self.batch_size, vllm, self.device_map, self.baseline)

    def _loaded(self) -> "Iterator[tuple[Any, Any]]":
        """Each benchmark with lm-eval's tasks or its text; MissingData with everything that is not to be had."""
        from stun_exp.data.missing import Missing, MissingData
        from stun_exp.evaluation.perplexity import load_text

        texts: dict[str, Any] = {}
        missing: list[Missing] = []
        for name, one in self.benchmarks.items():
            if isinstance(one, TokenPerplexity):
                try:
                    texts[name] = load_text(one, self.data_folder)
                except MissingData as error:
                    missing += error.missing
        tasks = {name: one for name, one in self.benchmarks.items() if isinstance(one, Benchmark)}
        try:
            loaded = dict(zip(tasks, load(list(tasks.values()), self.data_folder, self.run_unsafe_code), strict=True))
        except MissingData as error:
            missing += error.missing
        if missing:
            raise MissingData(missing)
        yield from ((one, texts[name] if name in texts else loaded[name]) for name, one in self.benchmarks.items())

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

    benchmarks: tuple[tuple[Any, Any], ...]
    """Each with what was loaded for it: lm-eval's tasks, or a text."""
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
            loaded.rehearse(benchmark, tokenizer)

    def depend_on(self) -> dict[str, Any]:
        """All that the figures depend on besides the model and the device, as plain data."""
        return {
            "lm-eval": version("lm-eval"),
            "limit": self.limit,
            "batch size": self.batch_size,
            "backend": f"vllm {self.vllm.version}" if self.vllm else "hf",
            "benchmarks": [
                {
                    "settings": benchmark.model_dump(exclude={"path"}),  # what was read there is in the digests
                    "tasks": found.digests,
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
            found = loaded.measure(benchmark, lm, self.limit)
            result.metrics.update(found.metrics)
            result.samples.extend(found.samples)
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        return result
