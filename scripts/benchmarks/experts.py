"""Benchmarks of choosing experts: the exact search, its memory, and the clustering of Arctic-sized routers."""

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts.benchmarks.timing import alternate, ratio, timed

ROOT = Path(__file__).resolve().parents[2]


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
        program = f"from scripts.benchmarks.experts import gram_peak_gib; print(gram_peak_gib({chunk_tokens}))"
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576"}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        return float(done.stdout)

    return {**ratio(peak(512), peak(16384)), "unit": "of the memory"}


def gram_peak_gib(chunk_tokens: int) -> float:
    import torch

    from stun_exp.expert_pruner.reconstruction.lattice import best_subset
    from stun_exp.state.costs import Costs

    block, hidden_TD = _moe_block(32, 16384)
    _grams(block, hidden_TD[:64], 4, 64)  # what torch loads at its first call is not the search's memory
    costs = Costs(torch.device("cpu"))
    with costs.measured("before") as before:
        pass
    with costs.measured("search") as search:
        best_subset(_grams(block, hidden_TD, 4, chunk_tokens), 32, 4)
    return search.peak_host_gib - before.peak_host_gib


def _exhaustive(num_experts: int, num_kept: int, *, reference: bool) -> dict[str, Any]:
    from copy import deepcopy
    from itertools import combinations

    import torch

    from stun_exp.expert_pruner.reconstruction.lattice import best_subset

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
        value = statistics.median(timed(ours) for _ in range(5))
        return {"value": value, "unit": "s", "ours": value, "reference": None}
    assert ours() == by_forward_passes()
    seconds, plain = alternate(ours, by_forward_passes)
    return {**ratio(plain, seconds), "unit": "times faster", "ours": seconds, "reference": plain}


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

    from stun_exp.expert_pruner.reconstruction.token_grams import TokenGrams
    from stun_exp.moe.observe import observe

    grams = TokenGrams(layer.num_experts, layer.top_k, num_removed, layer.renormalizes, chunk_tokens)
    with observe(layer, [grams]), torch.inference_mode():
        layer.block(hidden_TD[None])
    return grams


def stun_global_budget_seconds() -> dict[str, Any]:
    """Which 3,570 of Snowflake Arctic's 35 x 128 experts stay, from router rows alone; the goal is under 3."""
    from stun_exp.expert_pruner.stun.linkage import merge_path
    from stun_exp.expert_pruner.stun.merge_path import cut_globally
    from stun_exp.expert_pruner.stun.similarity import router_distance

    rows = _router_rows()

    def once() -> None:
        paths = [merge_path(router_distance(rows_ED, "none"), "complete") for rows_ED in rows]
        taken = cut_globally(paths, [2] * 35, 35 * 128 - 3570)
        clusters = [path.clusters(n) for path, n in zip(paths, taken, strict=True)]
        assert sum(map(len, clusters)) == 3570

    value = statistics.median(timed(once) for _ in range(5))
    return {"value": value, "unit": "s", "ours": value, "reference": None}


def stun_budget_vs_restart() -> dict[str, Any]:
    """The official rule's search for half of the same experts, against the rule from scratch at every trial."""
    from stun_exp.expert_pruner.stun.official_search import OfficialLayers, search
    from stun_exp.expert_pruner.stun.similarity import router_distance

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

    fast, slow = statistics.median(timed(ours) for _ in range(5)), timed(restart)
    assert found["ours"] == found["restart"]
    return {**ratio(slow, fast), "unit": "times faster", "ours": fast, "reference": slow}


def redundancy_routers_seconds() -> dict[str, Any]:
    """How alike the rows of 1,000 routers of 128 x 7,168 are, against scipy's pairwise differences."""
    import torch
    from scipy.spatial.distance import pdist, squareform

    from stun_exp.moe.redundancy import nearest_distances

    rows = _router_rows()
    found: dict[str, list[float]] = {}

    def ours() -> None:
        found["ours"] = [float(nearest_distances(rows_ED).mean()) for rows_ED in rows]

    def differences() -> None:
        found["scipy"] = []
        for rows_ED in rows:
            distance_EE = torch.from_numpy(squareform(pdist(rows_ED.double().numpy()))).fill_diagonal_(torch.inf)
            found["scipy"].append(float(distance_EE.min(1).values.mean() / rows_ED.double().norm(dim=1).mean()))

    fast, slow = alternate(ours, differences, repeats=3)
    assert all(abs(a - b) < 1e-9 for a, b in zip(found["ours"], found["scipy"], strict=True))
    scale = 1000 / len(rows)
    return {"value": scale * fast, "unit": "s", "ours": scale * fast, "reference": scale * slow}


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
