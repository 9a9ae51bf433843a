"""Where the layers' merges stop: the budget, for each linkage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stun_exp.expert_pruner.protocol import ExpertSource
from stun_exp.expert_pruner.stun.linkage import Linkage, merge_path
from stun_exp.expert_pruner.stun.merge_path import MergePath, cut_globally
from stun_exp.expert_pruner.stun.official_search import OfficialLayers, nearest, search

Budget = Literal["global", "per_layer"]


@dataclass(frozen=True)
class Cut:
    """One layer's merges, and how many of them happen."""

    path: MergePath
    num_merges: int
    threshold: float | None
    """The highest merge that happened, in the budget's scope; the official rule's threshold. None without a merge."""

    @property
    def clusters(self) -> list[list[int]]:
        return self.path.clusters(self.num_merges)


def cut_linkage(
    layers: Sequence[ExpertSource],
    distances_EE: Sequence[np.ndarray],
    kept: Sequence[int],
    linkage: Linkage,
    budget: Budget,
) -> list[Cut]:
    """Each layer's cut under scipy's linkages; the budget is hit exactly."""
    paths = [merge_path(d, linkage, layer.num_groups) for d, layer in zip(distances_EE, layers, strict=True)]
    removed = [layer.num_experts - n for layer, n in zip(layers, kept, strict=True)]
    if budget == "per_layer":
        return [Cut(path, n, _highest([path], [n])) for path, n in zip(paths, removed, strict=True)]
    taken = cut_globally(paths, [layer.min_experts for layer in layers], sum(removed))
    threshold = _highest(paths, taken)
    return [Cut(path, n, threshold) for path, n in zip(paths, taken, strict=True)]


def cut_official(
    layers: Sequence[ExpertSource], distances_EE: Sequence[np.ndarray], kept: Sequence[int], budget: Budget
) -> tuple[list[Cut], list[str]]:
    """Each layer's cut under the official rule, and a warning wherever the official search gives up.

    The official script then ends without a result; here the nearest total over all thresholds is taken.
    """
    least, groups = [layer.min_experts for layer in layers], [layer.num_groups for layer in layers]
    if budget == "global":
        official = OfficialLayers(distances_EE, least, groups)
        threshold, warnings = _threshold(official, sum(kept), "")
        return _at(official, threshold), warnings
    cuts, warnings = [], []
    for number, layer in enumerate(layers):
        official = OfficialLayers([distances_EE[number]], [least[number]], [groups[number]])
        threshold, warned = _threshold(official, kept[number], f"layer {layer.index}: ")
        cuts += _at(official, threshold)
        warnings += warned
    return cuts, warnings


def _highest(paths: Sequence[MergePath], taken: Sequence[int]) -> float | None:
    return max((path.heights[n - 1] for path, n in zip(paths, taken, strict=True) if n), default=None)


def _at(layers: OfficialLayers, threshold: float) -> list[Cut]:
    return [Cut(path, len(path.pairs), threshold) for path in layers.paths(threshold)]


def _threshold(layers: OfficialLayers, target: int, where: str) -> tuple[float, list[str]]:
    found = search(layers.total, target)
    if found is not None:
        return found, []
    threshold = nearest(layers, target)
    return threshold, [
        f"{where}expert_pruner.linkage=official: the official search finds no threshold that keeps {target} experts; "
        f"of all thresholds, {threshold:.6g} comes nearest and keeps {layers.total(threshold)}"
    ]
