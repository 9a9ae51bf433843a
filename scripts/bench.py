"""Measures the project's speed claims and writes results/bench.json: a list of one entry a figure.

Ratios are of medians of alternated runs against a plain reference that gives the same answer. Run it by `make bench`,
on an otherwise idle machine; name figures to measure only those, the others keep their last value.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
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
    return _seconds([*STUN, "expert_pruner.ratoi=0.5"], expected=2)


def help_seconds() -> dict[str, Any]:
    """`stun --help`; the goal is under 1."""
    return _seconds([*STUN, "--help"], expected=0)


def demo_installed_minutes() -> dict[str, Any]:
    """`make demo` when .venv is there; the goal is at most 4 on two cores."""
    return _minutes(lambda: subprocess.run(["make", "demo"], cwd=ROOT, check=True, capture_output=True))


def demo_bare_clone_minutes() -> dict[str, Any]:
    """`git clone` and `make demo`, installation included; the goal is at most 10."""
    folder = ROOT / "runs" / "bare-clone"
    shutil.rmtree(folder, ignore_errors=True)

    def clone_and_demo() -> None:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        subprocess.run(["make", "demo"], cwd=folder, check=True, capture_output=True)

    return _minutes(clone_and_demo)


def toy_prune_over_eval() -> dict[str, Any]:
    """Everything before the written checkpoint, over the evaluation, in one run of the default settings."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*STUN, f"hydra.run.dir={folder}"], check=True, capture_output=True)
        cost = json.loads((Path(folder) / "report.json").read_text())["cost"]
    pruning = sum(cost[stage]["wall_seconds"] for stage in ("experts", "allocate", "prune"))
    return _ratio(pruning, cost["evaluate"]["wall_seconds"])


def wanda_mask_vs_sort() -> dict[str, Any]:
    """The mask of one 4096 x 14336 matrix at 50 %, against a stable sort of each row."""
    import torch

    from stun_exp.unstructured_pruner.masks import lowest

    saliency_RC = torch.rand(4096, 14336, generator=torch.Generator().manual_seed(0))

    def by_sort() -> torch.Tensor:
        order_RC = saliency_RC.argsort(dim=1, stable=True)[:, : saliency_RC.shape[1] // 2]
        return torch.zeros_like(saliency_RC, dtype=torch.bool).scatter_(1, order_RC, True)

    assert torch.equal(lowest(saliency_RC, 0.5), by_sort())
    ours, reference = _alternate(lambda: lowest(saliency_RC, 0.5), by_sort)
    return {**_ratio(reference, ours), "unit": "times faster", "ours": ours, "reference": reference}


def exhaustive_vs_forwards() -> dict[str, Any]:
    """All 70 subsets of 4 of 8 experts, 2,048 tokens, hidden 256, width 512, against a forward pass for each."""
    return _exhaustive(8, 4, reference=True)


def exhaustive_n16_seconds() -> dict[str, Any]:
    """All 12,870 subsets of 8 of 16 experts on as many tokens of the same sizes; the goal is under 60."""
    return _exhaustive(16, 8, reference=False)


def gram_memory() -> dict[str, Any]:
    """Peak memory of the search over 16,384 tokens (4 of 32 experts to go) in chunks of 512, over that in one."""

    def peak(chunk_tokens: int) -> float:
        # A process each, and large blocks straight from the system: what one search leaves behind is not counted.
        program = f"import bench; print(bench._gram_peak_gib({chunk_tokens}))"
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576"}
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, cwd=ROOT / "scripts", env=environment, check=True, capture_output=True, text=True
        )
        return float(done.stdout)

    return {**_ratio(peak(512), peak(16384)), "unit": "of the memory"}


def _gram_peak_gib(chunk_tokens: int) -> float:
    import torch

    from stun_exp.expert_pruner.lattice import best_subset
    from stun_exp.report.ledger import _peak_host_gib, _reset_peaks

    block, hidden_TD = _moe_block(32, 16384)
    _grams(block, hidden_TD[:64], 4, 64)  # what torch loads at its first call is not the search's memory
    _reset_peaks(torch.device("cpu"))
    before = _peak_host_gib()
    best_subset(_grams(block, hidden_TD, 4, chunk_tokens), 32, 4)
    return _peak_host_gib() - before


def _exhaustive(num_experts: int, num_kept: int, *, reference: bool) -> dict[str, Any]:
    from copy import deepcopy
    from itertools import combinations

    import torch

    from stun_exp.expert_pruner.lattice import best_subset

    layer, hidden_TD = _moe_block(num_experts, 2048)
    num_removed = num_experts - num_kept

    def ours() -> list[int]:
        removed, _ = best_subset(_grams(layer, hidden_TD, num_removed, 512), num_experts, num_removed)
        return [expert for expert in range(num_experts) if expert not in removed]

    @torch.inference_mode()
    def by_forward_passes() -> list[int]:
        target = layer.block(hidden_TD[None])
        losses = []
        for kept in combinations(range(num_experts), num_kept):
            cut = deepcopy(layer)
            cut.regroup([[expert] for expert in kept])
            losses.append((float((cut.block(hidden_TD[None]) - target).double().norm()), list(kept)))
        return min(losses)[1]

    if not reference:
        value = statistics.median(_timed(ours) for _ in range(5))
        return {"value": value, "unit": "s", "ours": value, "reference": None}
    assert ours() == by_forward_passes()
    seconds, plain = _alternate(ours, by_forward_passes)
    return {**_ratio(plain, seconds), "unit": "times faster", "ours": seconds, "reference": plain}


def _moe_block(num_experts: int, num_tokens: int) -> tuple[Any, Any]:
    """A Mixtral layer of hidden size 256 and width 512 with random weights, and tokens for it."""
    import torch
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer

    from stun_exp.moe.families import FAMILIES
    from stun_exp.moe.layers import MoELayer

    torch.manual_seed(0)
    config = MixtralConfig(hidden_size=256, intermediate_size=512, num_attention_heads=4, num_local_experts=num_experts)
    config._attn_implementation, config._experts_implementation = "sdpa", "grouped_mm"
    module = MixtralDecoderLayer(config, 0).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.data = 0.05 * torch.randn_like(parameter)
    return MoELayer(module, 0, FAMILIES["mixtral"]), torch.randn(num_tokens, 256)


def _grams(layer: Any, hidden_TD: Any, num_removed: int, chunk_tokens: int) -> Any:
    import torch

    from stun_exp.expert_pruner.token_grams import TokenGrams
    from stun_exp.moe.observe import observe

    grams = TokenGrams(layer.num_experts, layer.top_k, num_removed, layer.renormalises, chunk_tokens)
    with observe(layer, [grams]), torch.inference_mode():
        layer.block(hidden_TD[None])
    return grams


def stun_global_budget_seconds() -> dict[str, Any]:
    """Which 3,570 of Snowflake Arctic's 35 x 128 experts stay, from router rows alone; the goal is under 3."""
    from stun_exp.expert_pruner.linkage import merge_path
    from stun_exp.expert_pruner.merge_path import cut_globally
    from stun_exp.expert_pruner.similarity import router_distance

    rows = _router_rows()

    def once() -> None:
        paths = [merge_path(router_distance(rows_ED, "none"), "complete") for rows_ED in rows]
        taken = cut_globally(paths, [2] * 35, 35 * 128 - 3570)
        clusters = [path.clusters(n) for path, n in zip(paths, taken, strict=True)]
        assert sum(map(len, clusters)) == 3570

    value = statistics.median(_timed(once) for _ in range(5))
    return {"value": value, "unit": "s", "ours": value, "reference": None}


def stun_budget_vs_restart() -> dict[str, Any]:
    """The official rule's search for half of the same experts, against the rule from scratch at every trial."""
    from stun_exp.expert_pruner.official_search import OfficialLayers, search
    from stun_exp.expert_pruner.similarity import router_distance

    distances = [router_distance(rows_ED, "frobenius") for rows_ED in _router_rows()]
    target, found = 35 * 64, {}

    def ours() -> None:
        layers = OfficialLayers(distances, [2] * 35)
        threshold = search(layers.total, target)
        assert threshold is not None
        found["ours"] = (threshold, [path.clusters(len(path.pairs)) for path in layers.paths(threshold)])

    def restart() -> None:
        def total_at(threshold: float) -> int:
            clusters = [_official_clusters(distance_EE, threshold, 2) for distance_EE in distances]
            found["restart"] = (threshold, clusters)
            return sum(map(len, clusters))

        assert search(total_at, target) is not None

    fast, slow = statistics.median(_timed(ours) for _ in range(5)), _timed(restart)
    assert found["ours"] == found["restart"]
    return {**_ratio(slow, fast), "unit": "times faster", "ours": fast, "reference": slow}


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
    ours, reference = _alternate(batched, single)
    return {**_ratio(reference, ours), "unit": "times faster", "ours": ours, "reference": reference}


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
    )
}


def _router_rows() -> list[Any]:
    """Routers of the size of Snowflake Arctic's, 35 of 128 rows of 7,168, at random."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return [torch.randn(128, 7168, generator=generator) for _ in range(35)]


def _official_clusters(distance_EE: Any, threshold: float, min_clusters: int) -> list[list[int]]:
    """The official rule as the script has it: the smallest entry of a matrix, again and again."""
    import numpy as np

    left_EE = distance_EE.copy()
    np.fill_diagonal(left_EE, np.inf)
    clusters = {expert: [expert] for expert in range(len(left_EE))}
    count = len(left_EE)
    while count > min_clusters:
        one, two = divmod(int(left_EE.argmin()), len(left_EE))
        if left_EE[one, two] >= threshold:
            break
        if max(left_EE[clusters[one], two].max(), left_EE[clusters[two], one].max()) < threshold:
            left_EE[clusters[one], two] = left_EE[clusters[two], one] = np.inf
            merged = sorted(clusters[one] + clusters[two])
            clusters |= dict.fromkeys(merged, merged)
            count -= 1
        else:
            left_EE[one, two] = left_EE[two, one] = np.inf
    return sorted(cluster for expert, cluster in clusters.items() if cluster[0] == expert)


def _seconds(command: list[str], expected: int) -> dict[str, Any]:
    def once() -> None:
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == expected, done.stderr.decode()

    value = statistics.median(_timed(once) for _ in range(7))
    return {"value": value, "unit": "s", "ours": value, "reference": None}


def _minutes(function: Callable[[], Any]) -> dict[str, Any]:
    value = _timed(function) / 60
    return {"value": value, "unit": "min", "ours": value, "reference": None}


def _ratio(ours: float, reference: float) -> dict[str, Any]:
    return {"value": ours / reference, "unit": "ratio", "ours": ours, "reference": reference}


def _alternate(ours: Callable[[], Any], reference: Callable[[], Any], repeats: int = 5) -> tuple[float, float]:
    """Median seconds of each, run in turns so that both meet the same disturbances."""
    pairs = [(_timed(ours), _timed(reference)) for _ in range(repeats)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def _timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _device() -> str:
    return f"cpu, {os.cpu_count()} cores ({platform.machine()})"


if __name__ == "__main__":
    main()
