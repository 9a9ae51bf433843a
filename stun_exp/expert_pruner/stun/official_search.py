"""One threshold for the official rule: the script's search, and what to take where that gives up."""

from collections.abc import Callable, Sequence

import numpy as np

from stun_exp.expert_pruner.stun.merge_path import MergePath
from stun_exp.expert_pruner.stun.official_rule import OfficialRule, Run


class OfficialLayers:
    """Layers under the official rule, at any threshold; each is run again only for one that can change its merges.

    The code knows no groups of experts. Here each group of a layer runs alone, and makes as many merges as the one that
    makes fewest.
    """

    def __init__(
        self, distances_EE: Sequence[np.ndarray], min_clusters: Sequence[int], num_groups: Sequence[int] | None = None
    ):
        self.num_experts = [len(distance_EE) for distance_EE in distances_EE]
        self.num_groups = list(num_groups or [1] * len(distances_EE))
        self.runs: list[list[Run]] = [[] for _ in distances_EE]
        kinds = list(zip(self.num_experts, self.num_groups, strict=True))
        self.batches = [
            _Batch(members, self.num_groups[members[0]], distances_EE, min_clusters)
            for members in ([i for i, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds))
        ]

    def at(self, thresholds: Sequence[float]) -> list[Run]:
        """Each layer's merges at its own threshold, and the thresholds for which they are the same."""
        for batch in self.batches:
            lacking = [number for number in batch.members if self._known(number, thresholds[number]) is None]
            if lacking:
                runs = batch.run(lacking, [thresholds[number] for number in lacking])
                for number, run in zip(lacking, runs, strict=True):
                    self.runs[number].append(run)
        found = [self._known(number, threshold) for number, threshold in enumerate(thresholds)]
        return [run for run in found if run is not None]

    def paths(self, threshold: float) -> list[MergePath]:
        """Each layer's merges at one threshold."""
        runs = self.at([threshold] * len(self.runs))
        return [
            MergePath(n, [(i, j) for i, j in run.pairs_M2.tolist()], run.heights_M.tolist(), groups)
            for n, run, groups in zip(self.num_experts, runs, self.num_groups, strict=True)
        ]

    def total(self, threshold: float) -> int:
        """How many clusters all layers have at one threshold."""
        runs = self.at([threshold] * len(self.runs))
        return sum(self.num_experts) - sum(len(run.heights_M) for run in runs)

    def everywhere(self) -> list[list[Run]]:
        """Each layer's runs at all thresholds, highest first."""
        found = [[run] for run in self.at([np.inf] * len(self.runs))]
        while any(runs[-1].low > -np.inf for runs in found):
            # A layer that has all its runs is asked for its lowest again, which is known.
            lower = self.at([max(runs[-1].low, np.nextafter(-np.inf, 0)) for runs in found])
            for runs, run in zip(found, lower, strict=True):
                if runs[-1].low > -np.inf:
                    runs.append(run)
        return found

    def _known(self, number: int, threshold: float) -> Run | None:
        return next((run for run in self.runs[number] if run.low < threshold <= run.high), None)


class _Batch:
    """Layers of one size and number of groups."""

    def __init__(
        self, members: list[int], num_groups: int, distances_EE: Sequence[np.ndarray], min_clusters: Sequence[int]
    ):
        self.members, self.num_groups = members, num_groups
        self.size = len(distances_EE[members[0]]) // num_groups
        blocks = [slice(group * self.size, (group + 1) * self.size) for group in range(num_groups)]
        self.rule = OfficialRule(
            [distances_EE[number][block, block] for number in members for block in blocks],
            [-(-min_clusters[number] // num_groups) for number in members for _ in blocks],
        )

    def run(self, numbers: Sequence[int], thresholds: Sequence[float]) -> list[Run]:
        """Each layer's run, a merge in each of its groups at a time."""
        groups = range(self.num_groups)
        which = [self.members.index(number) * self.num_groups + group for number in numbers for group in groups]
        runs = self.rule.run(which, np.repeat(thresholds, self.num_groups))
        return [self._joined(runs[i : i + self.num_groups]) for i in range(0, len(runs), self.num_groups)]

    def _joined(self, runs: list[Run]) -> Run:
        fewest = min(len(run.heights_M) for run in runs)
        pairs_MG2 = np.stack([run.pairs_M2[:fewest] + group * self.size for group, run in enumerate(runs)], axis=1)
        heights_M = np.max([run.heights_M[:fewest] for run in runs], axis=0)
        low, high = max(run.low for run in runs), min(run.high for run in runs)
        return Run(pairs_MG2.reshape(-1, 2), heights_M.repeat(len(runs)), low, high)


def search(total_at: Callable[[float], int], target: int) -> float | None:
    """A threshold with `target` clusters in total as the official script finds it; None where it gives up.

    From 0.5 by steps of 0.1, doubled before each use until the direction first flips and halved each time from then on.
    It gives up at ten equal totals in a row. The total need not fall as the threshold rises, and may skip the target.
    """
    threshold, step, direction, flipped = 0.5, 0.1, 0, False
    totals: list[int] = []
    while True:
        totals.append(total_at(threshold))
        if totals[-1] == target:
            return threshold
        if len(totals) >= 10 and len(set(totals[-10:])) == 1:
            return None
        toward = 1 if totals[-1] > target else -1
        flipped = flipped or toward == -direction
        direction = toward
        step = step / 2 if flipped else step * 2
        threshold += toward * step


def nearest(layers: OfficialLayers, target: int) -> float:
    """Of all thresholds, one whose total is nearest to `target`; of two totals as near, the one that keeps more.

    Where several stretches of thresholds give that total, it is the upper end of the lowest.
    """
    runs = layers.everywhere()
    # Nothing changes above the largest distance that any run examines.
    top = np.nextafter(max(found[0].low for found in runs), np.inf)
    thresholds = np.unique([min(run.high, top) for found in runs for run in found])
    totals = np.full(len(thresholds), sum(layers.num_experts))
    for found in runs:
        rising = found[::-1]
        place = np.searchsorted([run.high for run in rising], thresholds)
        totals -= np.array([len(run.heights_M) for run in rising])[place]
    return float(thresholds[np.lexsort((thresholds, -totals, abs(totals - target)))[0]])
