"""What `stun-clusters` found, in words and numbers."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

from stun_exp.report.clusters.runs import ClusteredRun, agreement, correlations, stability

LABORATORY = "run with expert_pruner.laboratory=true"
WORDS = ((0.1, "no better than chance"), (0.4, "a little"), (0.75, "partly"), (0.95, "largely"), (1.0, "almost fully"))
"""Below which adjusted Rand index clusters agree how far; these bounds are ours."""


def findings(run: ClusteredRun) -> Iterator[str]:
    """Clusters, what they move, and how far one similarity's clusters and distances agree with another's."""
    sizes = [layer["sizes"] for layer in run.layers]
    experts = sum(layer["num_experts"] for layer in run.layers)
    largest = max(range(len(sizes)), key=lambda place: sizes[place][0])
    yield (
        f"run {run.name}: {experts} experts of {len(sizes)} layers in {sum(map(len, sizes))} clusters, the largest of "
        f"{sizes[largest][0]} in layer {run.layers[largest]['layer']}"
    )
    moved = {layer["layer"]: layer["mass_moved"] for layer in run.layers if layer["mass_moved"] is not None}
    if moved:
        most = max(moved, key=moved.__getitem__)
        yield (
            f"  gate mass moved to other experts: {100 * mean(moved.values()):.1f} % on average over layers, the most "
            f"in layer {most}, {100 * moved[most]:.1f} %"
        )
    pairs = _by_pair(agreement(run))
    if not pairs:
        yield f"  similarities were not compared; {LABORATORY}"
        return
    orders = _by_pair(correlations(run))
    yield (
        "  clusters by one similarity each, mean over layers of the adjusted Rand index (1: equal, 0: chance) and its "
        "range, and Spearman's correlation of the distances:"
    )
    for pair, indices in pairs.items():
        order = f"; distances {mean(orders[pair]):.2f}" if orders.get(pair) else ""
        yield f"    {' and '.join(pair.split('-'))}: {_index(indices)}{order}"
    own = {pair.partition("-")[2]: mean(v) for pair, v in orders.items() if pair.startswith("distance-")}
    if own:
        told = ", ".join(f"{name} {value:.2f}" for name, value in own.items())
        yield f"  correlation of the distance that was clustered with that by each alone: {told}"


def findings_over_runs(groups: Sequence[Sequence[ClusteredRun]]) -> Iterator[str]:
    """How far runs of equal settings agree, as those of several seeds."""
    for group in groups:
        yield f"runs {', '.join(run.name for run in group)}, of equal settings: mean over layers and pairs of runs"
        for name, indices in _by_pair(stability(group)).items():
            which = "their clusters" if name == "clusters" else f"clusters by {name} alone"
            yield f"    {which}: {_index(indices)}"


def _by_pair(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """What each comparison came to, layer after layer, but for layers in which it could not be made."""
    names = dict.fromkeys(name for row in rows for name in row if name != "layer")
    return {name: [row[name] for row in rows if row.get(name) is not None] for name in names}


def _index(indices: Sequence[float]) -> str:
    average = mean(indices)
    word = next((word for bound, word in WORDS if average < bound), "fully")
    return f"{average:.2f} ({min(indices):.2f} to {max(indices):.2f}), they agree {word}"
