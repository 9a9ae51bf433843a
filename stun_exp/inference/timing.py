"""Tokens a second of several models, measured in turns, so that all meet the same disturbances.

Shapes: B sequences, T tokens of each.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria

from stun_exp.inference.records import Speed, Spread

Clock = Callable[[], float]
R = TypeVar("R")


@dataclass(frozen=True)
class Seconds:
    """What one generation took: up to its first token, and from there to its last."""

    prefill: float
    decode: float


def clock_of(device: torch.device) -> Clock:
    """Seconds, once all that was asked of the device is done."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


class _Marks(StoppingCriteria):  # type: ignore[misc]
    """Stops nothing: notes when each token is there."""

    def __init__(self, now: Clock) -> None:
        self.now = now
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.times.append(self.now())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate(model: PreTrainedModel, prompts_BT: Tensor, new_tokens: int, now: Clock) -> Seconds:
    """One generation by transformers, greedy, with its cache of keys and values; it goes on behind an end of text."""
    ids_BT, marks = prompts_BT.to(model.device), _Marks(now)
    start = now()
    _generate(model, ids_BT, new_tokens, stopping_criteria=[marks])
    assert len(marks.times) == new_tokens, "a generation ended early"
    return Seconds(marks.times[0] - start, marks.times[-1] - marks.times[0])


def cache_behind(model: PreTrainedModel, prompts_BT: Tensor) -> Any:
    """The cache of keys and values once prompts are read."""
    return _generate(model, prompts_BT.to(model.device), 1, return_dict_in_generate=True).past_key_values


def _generate(model: PreTrainedModel, ids_BT: Tensor, new_tokens: int, **more: Any) -> Any:
    config = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=0)
    return model.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), generation_config=config, **more)


def in_turns(runs: Sequence[Callable[[], R]], repeats: int) -> list[list[R]]:
    """What each run gives, time after time; every second round in the opposite order, and a first one not counted."""
    found: list[list[R]] = [[] for _ in runs]
    for number in range(repeats + 1):
        order = range(len(runs)) if number % 2 else range(len(runs) - 1, -1, -1)
        for place in order:
            result = runs[place]()
            if number:
                found[place].append(result)
    return found


def spread(values: Sequence[float]) -> Spread:
    """The median and the quartiles of two values or more."""
    lower, median, upper = quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper)


def speed(batch_size: int, prompt_tokens: int, new_tokens: int, times: Sequence[Seconds]) -> Speed:
    """Tokens a second of generations of `new_tokens` tokens each, the first of which comes with the prompt."""
    return Speed(
        batch_size,
        spread([batch_size * prompt_tokens / one.prefill for one in times]),
        spread([batch_size * (new_tokens - 1) / one.decode for one in times]),
    )
