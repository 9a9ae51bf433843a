"""Where the layers' merges stop: the budget, for each linkage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stun_exp.expert_pruner.protocol import ExpertSource
from stun_exp.expert_pruner.stun.linkage import Linkage, merge_path
from stun_exp.expert_pruner.stun.merge_path import MergePath, cut_globally
from stun_exp.expert_pruner.stun.official_search import OfficialLayers, nearest, search
from stun_exp.moe.counts import by_layer

BudgetOver = Literal["global", "per_layer"]


@dataclass(frozen=True)
class Goal:
    """Where the merges of all layers are to stop."""

    ratio: float
    """Share of the experts that goes, as asked."""
    kept: Sequence[int]
    """How many experts each layer keeps if all lose that share."""
    least: Sequence[int]
    """The fewest that each layer may keep."""
    budget: BudgetOver
    threshold: float | None
    """Given instead of searched for: no merge happens above it."""
    max_removed: int | None
    """The most experts that a layer may lose, which is in `least` already."""


@dataclass(frozen=True)
class Cut:
    """One layer's merges, and how many of them happen."""

    path: MergePath
    num_merges: int
    threshold: float | None
    """The highest merge that happened, in the budget's scope; the official rule's threshold, or the given one. None
    without a merge."""

    @property
    def clusters(self) -> list[list[int]]:
        return self.path.clusters(self.num_merges)


def fewest_clusters(layer: ExpertSource, max_removed: int | None) -> int:
    """The fewest clusters that a layer may have: what its router needs, or what a limit on its losses leaves."""
    return layer.min_experts if max_removed is None else max(layer.min_experts, layer.num_experts - max_removed)


def cut_linkage(
    layers: Sequence[ExpertSource], distances_EE: Sequence[np.ndarray], linkage: Linkage, goal: Goal
) -> list[Cut]:
    """Each layer's cut under scipy's linkages; the budget is hit exactly, or ValueError says why it cannot be."""
    _check_room(layers, goal)
    paths = [merge_path(d, linkage, layer.num_groups) for d, layer in zip(distances_EE, layers, strict=True)]
    removed = [layer.num_experts - n for layer, n in zip(layers, goal.kept, strict=True)]
    if goal.threshold is not None:
        given = [path.num_merges(goal.threshold, n) for path, n in zip(paths, goal.least, strict=True)]
        return _matched(layers, [Cut(path, n, goal.threshold) for path, n in zip(paths, given, strict=True)], goal)
    if goal.budget == "per_layer":
        return [Cut(path, n, _highest([path], [n])) for path, n in zip(paths, removed, strict=True)]
    taken = cut_globally(paths, goal.least, sum(removed))
    threshold = _highest(paths, taken)
    return [Cut(path, n, threshold) for path, n in zip(paths, taken, strict=True)]


def cut_official(
    layers: Sequence[ExpertSource], distances_EE: Sequence[np.ndarray], goal: Goal
) -> tuple[list[Cut], list[str]]:
    """Each layer's cut under the official rule, and a warning wherever the official search gives up.

    The official script then ends without a result; here the nearest total over all thresholds is taken. ValueError if
    the goal contradicts itself.
    """
    _check_room(layers, goal)
    groups = [layer.num_groups for layer in layers]
    if goal.budget == "global":
        official = OfficialLayers(distances_EE, goal.least, groups)
        if goal.threshold is not None:
            return _matched(layers, _at(official, goal.threshold), goal), []
        threshold, warnings = _threshold(official, sum(goal.kept), "")
        return _at(official, threshold), warnings
    cuts, warnings = [], []
    for number, layer in enumerate(layers):
        official = OfficialLayers([distances_EE[number]], [goal.least[number]], [groups[number]])
        threshold, warned = _threshold(official, goal.kept[number], f"layer {layer.index}: ")
        cuts += _at(official, threshold)
        warnings += warned
    return cuts, warnings


def _check_room(layers: Sequence[ExpertSource], goal: Goal) -> None:
    """ValueError if the limit on a layer's losses keeps the asked number of experts from going."""
    if goal.max_removed is None:
        return
    most = [layer.num_experts - n for layer, n in zip(layers, goal.least, strict=True)]
    asked = [layer.num_experts - n for layer, n in zip(layers, goal.kept, strict=True)]
    if goal.budget == "global":
        most, asked = [sum(most)], [sum(asked)]
    if any(n > limit for n, limit in zip(asked, most, strict=True)):
        total = sum(layer.num_experts for layer in layers)
        raise ValueError(
            f"expert_pruner.max_removed_per_layer={goal.max_removed}: {sum(most)} of {total} experts can go, and "
            f"expert_pruner.ratio={goal.ratio:g} removes {sum(asked)}; pass a higher limit or null for none, or "
            f"expert_pruner.ratio={sum(most) / total:.6g} or less; with this limit at least so many stay in "
            f"{_by_layer(layers, goal.least)}"
        )


def _matched(layers: Sequence[ExpertSource], cuts: list[Cut], goal: Goal) -> list[Cut]:
    """The cuts at a given threshold; ValueError if they do not keep as many experts as the ratio does."""
    total, left = sum(layer.num_experts for layer in layers), sum(len(cut.clusters) for cut in cuts)
    if left != sum(goal.kept):
        raise ValueError(
            f"expert_pruner.threshold={goal.threshold:g} keeps {left} of {total} experts, and expert_pruner.ratio="
            f"{goal.ratio:g} keeps {sum(goal.kept)}; pass expert_pruner.ratio={1 - left / total:.6g} (and sparsity, "
            "where experts alone make it), or expert_pruner.threshold=null, which finds the threshold of the ratio; "
            f"this one keeps in {_by_layer(layers, [len(cut.clusters) for cut in cuts])}"
        )
    return cuts


def _by_layer(layers: Sequence[ExpertSource], kept: Sequence[int]) -> str:
    return ", ".join(by_layer((layer.index, n, layer.num_experts) for layer, n in zip(layers, kept, strict=True)))


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
