"""Tokens a second, worked by hand on a clock that says what it is told."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch

from stun_exp.inference.records import Spread
from stun_exp.inference.timing import Seconds, generate, in_turns, speed, spread


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


class Model:
    """Takes 3 seconds for its first token, and 0.5 for each that follows."""

    device = torch.device("cpu")

    def __init__(self, clock: Clock, stops_after: int | None = None) -> None:
        self.clock, self.stops_after = clock, stops_after

    def generate(self, ids_BT: torch.Tensor, *, generation_config: Any, stopping_criteria: list[Any], **_: Any) -> None:
        for number in range(self.stops_after or generation_config.max_new_tokens):
            self.clock.time += 3.0 if number == 0 else 0.5
            (stops,) = stopping_criteria
            assert not stops(ids_BT, None).any()


def test_a_generation_is_timed_up_to_its_first_token_and_from_there() -> None:
    """5 tokens: 3 seconds, and 4 times 0.5; the trap is to count the first token with those that follow."""
    clock = Clock()
    assert generate(Model(clock), torch.ones(2, 8, dtype=torch.int64), 5, clock) == Seconds(3.0, 2.0)


def test_a_generation_that_ends_early_is_no_measurement() -> None:
    clock = Clock()
    with pytest.raises(AssertionError, match="ended early"):
        generate(Model(clock, stops_after=2), torch.ones(2, 8, dtype=torch.int64), 5, clock)


def test_tokens_a_second_by_hand() -> None:
    """4 prompts of 10 tokens in 2 s are 20 tokens/s; 4 times 5 tokens behind the first ones in 10 s are 2."""
    times = [Seconds(2.0, 10.0), Seconds(4.0, 20.0), Seconds(1.0, 5.0)]
    found = speed(4, 10, 6, times)
    assert found.batch_size == 4
    assert found.prefill == Spread(median=20.0, lower=15.0, upper=30.0)  # of 10, 20, 40
    assert found.decode == Spread(median=2.0, lower=1.5, upper=3.0)  # of 1, 2, 4


def test_the_spread_is_median_and_quartiles() -> None:
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(median=3.0, lower=2.0, upper=4.0)


@pytest.fixture
def runs() -> tuple[list[str], list[Callable[[], int]]]:
    """(The names of the runs in the order in which they ran, three runs that count how often any ran)."""
    log, number = list[str](), count()

    def run(name: str) -> Callable[[], int]:
        def go() -> int:
            log.append(name)
            return next(number)

        return go

    return log, [run(name) for name in "abc"]


def test_runs_take_turns_in_both_orders_behind_a_round_that_does_not_count(
    runs: tuple[list[str], list[Callable[[], int]]],
) -> None:
    """The trap: all of one model first, so that a slow minute of the machine is a slow model."""
    log, three = runs
    found = in_turns(three, 2)
    assert "".join(log) == "cba" + "abc" + "cba"
    assert found == [[3, 8], [4, 7], [5, 6]]
