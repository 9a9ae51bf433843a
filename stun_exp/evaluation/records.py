"""What is measured, and what comes of it, as plain records."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator

from stun_exp.config.component import Component
from stun_exp.utils.paths import expanded, is_file, is_folder

BUNDLED_TASKS = "bundled:toy"
"""The folder of the bundled model's tasks."""


class Benchmark(Component):
    """One lm-eval task or group: which, with how many shots, and which of its metrics is the headline."""

    task: str
    include: str | None
    """Folder of the task's YAML file, `bundled:toy`, or null for lm-eval's own tasks."""
    num_fewshot: int = Field(ge=0)
    metric: str
    """As lm-eval names it: metric,filter."""

    @field_validator("include")
    @classmethod
    def _is_there(cls, include: str | None) -> str | None:
        """`include`, if a folder is where it says."""
        if include not in (None, BUNDLED_TASKS) and not is_folder(str(include)):
            raise ValueError(f"no such folder; give the one of the task's YAML, {BUNDLED_TASKS}, or null for lm-eval's")
        return include


class TokenPerplexity(Component):
    """Perplexity of a text by tokens, in windows side by side, as pruning papers print it (of WikiText-2, mostly)."""

    task: str
    """What tables call it."""
    dataset: str
    """Hub repository of the text; its rows are joined by blank lines."""
    subset: str | None
    split: str
    column: str
    path: str | None
    """A file with the text, in the place of the dataset."""
    window: int = Field(ge=2)
    """Tokens of a window; the papers' 2,048."""
    num_fewshot: Literal[0]
    metric: Literal["token_perplexity,none"]

    @field_validator("path")
    @classmethod
    def _is_file(cls, path: str | None) -> str | None:
        if path is not None and not is_file(expanded(path)):
            raise ValueError("no such file; give one with the text, or null for the dataset")
        return path


@dataclass(frozen=True)
class Metric:
    """One figure of one benchmark, with what moves it."""

    value: float
    stderr: float | None
    num_samples: int
    num_fewshot: int
    task_version: str


@dataclass(frozen=True)
class Sample:
    """One item of one benchmark: what tells it from others, and how the model did on it."""

    benchmark: str
    task: str
    """The benchmark, or one of those that it is a group of."""
    metric: str
    doc: int
    hash: str
    """Of the item and of all that the model was shown for it."""
    value: float
    """The metric's; for perplexities and bits the item's negative log-likelihood, in nats."""


@dataclass(frozen=True)
class EvalResult:
    """What benchmarks say of a model: metrics as `task/metric,filter`, and the items that they are made of."""

    metrics: dict[str, Metric]
    samples: list[Sample]
