"""Measures the project's speed claims and writes results/bench.json: a list of one entry a figure.

Ratios are of medians of alternated runs against a plain reference that gives the same answer. Run it by `make bench`,
on an otherwise idle machine; name figures to measure only those, the others keep their last value.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.benchmarks.experts import (
    exhaustive_n16_seconds,
    exhaustive_vs_forwards,
    gram_memory,
    stun_budget_vs_restart,
    stun_global_budget_seconds,
)
from scripts.benchmarks.inspection import inspect_command_seconds, inspect_million_seconds
from scripts.benchmarks.models import nf4_expert_bytes_ratio, observe_over_forward
from scripts.benchmarks.streaming import stream_over_memory, stream_overlap, stream_rss_per_layer
from scripts.benchmarks.sweeps import (
    grid20_dense_over_point,
    grid20_pruned_over_twenty,
    report200_seconds,
    resweep_seconds,
)
from scripts.benchmarks.timing import alternate, minutes, ratio, seconds

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "bench.json"
STUN = [str(Path(sys.executable).parent / "stun")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *FIGURES], metavar="NAME", help=", ".join(FIGURES))
    names = parser.parse_args().names or list(FIGURES)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    entries = {entry["name"]: entry for entry in kept}
    for name in names:
        entries[name] = {
            "name": name,
            **FIGURES[name](),
            "device": _device(),
            "command": f"make bench NAMES={name}",
        }
        print(f"{name}: {entries[name]['value']:.3g} {entries[name]['unit']}", flush=True)
    RESULTS.write_text(json.dumps([entries[name] for name in FIGURES if name in entries], indent=1) + "\n")


def config_error_seconds() -> dict[str, Any]:
    """A mistyped setting, from the prompt to the message; the goal is under 2."""
    return seconds([*STUN, "expert_pruner.ratoi=0.5"], expected=2)


def help_seconds() -> dict[str, Any]:
    """`stun --help`; the goal is under 1."""
    return seconds([*STUN, "--help"], expected=0)


def demo_installed_minutes() -> dict[str, Any]:
    """`make demo` when .venv is there; the goal is at most 4 on two cores."""
    return minutes(lambda: subprocess.run(["make", "demo"], cwd=ROOT, check=True, capture_output=True))


def demo_bare_clone_minutes() -> dict[str, Any]:
    """`git clone` and `make demo`, installation included; the goal is at most 10."""
    folder = ROOT / "runs" / "bare-clone"
    shutil.rmtree(folder, ignore_errors=True)

    def clone_and_demo() -> None:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        subprocess.run(["make", "demo"], cwd=folder, check=True, capture_output=True)

    return minutes(clone_and_demo)


def toy_prune_over_eval() -> dict[str, Any]:
    """Everything before the written checkpoint, over the evaluation, in one run of the default settings."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*STUN, f"hydra.run.dir={folder}"], check=True, capture_output=True)
        cost = json.loads((Path(folder) / "report.json").read_text())["cost"]
    pruning = sum(cost[stage]["wall_seconds"] for stage in ("experts", "allocate", "prune"))
    return ratio(pruning, cost["evaluate"]["wall_seconds"])


def wanda_mask_vs_sort() -> dict[str, Any]:
    """The mask of one 4096 x 14336 matrix at 50 %, against a stable sort of each row."""
    import torch

    from stun_exp.unstructured_pruner.masks import lowest

    saliency_RC = torch.rand(4096, 14336, generator=torch.Generator().manual_seed(0))

    def by_sort() -> torch.Tensor:
        order_RC = saliency_RC.argsort(dim=1, stable=True)[:, : saliency_RC.shape[1] // 2]
        return torch.zeros_like(saliency_RC, dtype=torch.bool).scatter_(1, order_RC, True)

    assert torch.equal(lowest(saliency_RC, 0.5), by_sort())
    ours, reference = alternate(lambda: lowest(saliency_RC, 0.5), by_sort)
    return {**ratio(reference, ours), "unit": "times faster", "ours": ours, "reference": reference}


def sparsegpt_batched_vs_single() -> dict[str, Any]:
    """SparseGPT on gate and up of 32 experts, 256 x 512 each, against one matrix and its own Hessian at a time."""
    import torch

    from stun_exp.unstructured_pruner.protocol import Task
    from stun_exp.unstructured_pruner.sparsegpt import SparseGPT

    pruner = SparseGPT(
        attention=True,
        pattern="unstructured",
        block_size=128,
        damping=0.01,
        inputs="pruned",
        min_tokens=1,
        starved="every_token",
        experts_at_once=None,
    )
    generator = torch.Generator().manual_seed(0)
    mixing_CC = torch.randn(512, 512, generator=generator) / 512**0.5
    weights_EHOC = torch.randn(32, 2, 256, 512, generator=generator)
    hessians = [pruner.statistic(512) for _ in range(32)]
    for hessian in hessians:
        hessian.update(torch.randn(2048, 512, generator=generator) @ mixing_CC)

    def tasks(pruned_EHOC: torch.Tensor) -> list[Task]:
        return [
            Task(f"{expert} {half}", pruned_EHOC[expert, half], hessian, 0.5)
            for expert, hessian in enumerate(hessians)
            for half in range(2)
        ]

    def batched() -> torch.Tensor:
        pruned_EHOC = weights_EHOC.clone()
        assert pruner.prune_(tasks(pruned_EHOC)) == []
        return pruned_EHOC

    def single() -> torch.Tensor:
        pruned_EHOC = weights_EHOC.clone()
        for task in tasks(pruned_EHOC):
            assert pruner.prune_([task]) == []
        return pruned_EHOC

    assert torch.equal(batched() == 0, single() == 0)
    torch.testing.assert_close(batched(), single(), rtol=1e-3, atol=1e-4)
    ours, reference = alternate(batched, single)
    return {**ratio(reference, ours), "unit": "times faster", "ours": ours, "reference": reference}


FIGURES: dict[str, Callable[[], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        config_error_seconds,
        help_seconds,
        wanda_mask_vs_sort,
        exhaustive_vs_forwards,
        exhaustive_n16_seconds,
        gram_memory,
        toy_prune_over_eval,
        demo_installed_minutes,
        demo_bare_clone_minutes,
        stun_global_budget_seconds,
        stun_budget_vs_restart,
        sparsegpt_batched_vs_single,
        observe_over_forward,
        nf4_expert_bytes_ratio,
        inspect_million_seconds,
        inspect_command_seconds,
        stream_rss_per_layer,
        stream_over_memory,
        stream_overlap,
        grid20_dense_over_point,
        grid20_pruned_over_twenty,
        resweep_seconds,
        report200_seconds,
    )
}


def _device() -> str:
    return f"cpu, {os.cpu_count()} cores ({platform.machine()})"


if __name__ == "__main__":
    main()
