"""What was computed on so many threads is taken by runs on as many alone: other ones add up in another order."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

Runner = Callable[..., dict[str, Any]]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads, until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def is_cached(cost: dict[str, float]) -> bool:
    """Whether a stage is charged with what it has not spent."""
    return cost["charged_seconds"] > cost["wall_seconds"]


def test_statistics_and_plans(runner: Runner, tmp_path: Path, threads: Callable[[int], None]) -> None:
    """REAP's plan, and what flows into the weights behind unpruned layers, which other sparsities would take too."""
    common = ["sparsity=0.5", "expert_pruner=reap", "expert_pruner.ratio=0.25", "unstructured_pruner.inputs=dense"]
    common += ["allocation=uniform", "cache=folder", f"cache.path={tmp_path / 'cache'}"]

    def taken(number: int, out: str) -> dict[str, bool]:
        threads(number)
        cost = runner(*common, out=tmp_path / out)["cost"]
        return {stage: is_cached(cost[stage]) for stage in ("experts", "prune")}

    assert taken(1, "first") == {"experts": False, "prune": False}
    assert taken(2, "more") == {"experts": False, "prune": False}
    assert taken(1, "again") == {"experts": True, "prune": True}


def test_figures(runner: Runner, tmp_path: Path, threads: Callable[[int], None]) -> None:
    """Of one checkpoint, which runs on any number of threads write alike: whole experts go, by a router's norms."""
    common = ["sparsity_scope=experts", "sparsity=0.5", "expert_pruner=router_norm", "expert_pruner.ratio=0.5"]
    common += ["unstructured_pruner=none", "allocation=uniform", "eval=toy", "eval.limit=2"]
    common += [f"~eval.benchmarks.toy_{name}" for name in ("gsm8k", "arc", "hellaswag", "mmlu")]
    common += ["cache=folder", f"cache.path={tmp_path / 'cache'}"]

    def taken(number: int, out: str) -> bool:
        threads(number)
        return is_cached(runner(*common, out=tmp_path / out)["cost"]["evaluate"])

    assert [taken(1, "first"), taken(2, "more"), taken(1, "again")] == [False, False, True]
