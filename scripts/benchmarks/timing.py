"""How the benchmarks measure: seconds, minutes, and ratios of medians of alternated runs."""

import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any


def seconds(command: list[str], expected: int) -> dict[str, Any]:
    def once() -> None:
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == expected, done.stderr.decode()

    value = statistics.median(timed(once) for _ in range(7))
    return {"value": value, "unit": "s", "ours": value, "reference": None}


def minutes(function: Callable[[], Any]) -> dict[str, Any]:
    value = timed(function) / 60
    return {"value": value, "unit": "min", "ours": value, "reference": None}


def ratio(ours: float, reference: float) -> dict[str, Any]:
    return {"value": ours / reference, "unit": "ratio", "ours": ours, "reference": reference}


def alternate(ours: Callable[[], Any], reference: Callable[[], Any], repeats: int = 5) -> tuple[float, float]:
    """Median seconds of each, run in turns so that both meet the same disturbances."""
    pairs = [(timed(ours), timed(reference)) for _ in range(repeats)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
