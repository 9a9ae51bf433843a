"""The figures of `stun-clusters`, one run's or one comparison's each."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from stun_exp.report.clusters.runs import ClusteredRun, kept_by_budget
from stun_exp.utils.files import write_file

TREES_ACROSS = 4
DRAWN_BY = b"stun-clusters"
"""In the head of each figure's file: what has drawn it."""


def is_ours(file: Path) -> bool:
    """Whether a file is a figure that `stun-clusters` has drawn."""
    return file.is_file() and not file.is_symlink() and DRAWN_BY in file.read_bytes()[:1000]


def dendrograms(run: ClusteredRun, file: Path) -> None:
    """Each layer's merges as a tree, those that happened in color, and the threshold at which it was cut."""
    columns = min(TREES_ACROSS, len(run.layers))
    rows = -(-len(run.layers) // columns)
    figure = _figure(max(4.2 * columns, 6), 2.9 * rows + 0.5)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, layer in zip(panels, run.layers, strict=False):
        axes.set_axis_on()
        _tree(axes, layer)
    linkage = run.settings["linkage"]
    figure.suptitle(f"run {run.name}: merges by {linkage} linkage; those in blue happened, dashed is the threshold")
    figure.supylabel("distance")
    _save(figure, file)


def experts_kept(run: ClusteredRun, file: Path) -> None:
    """Experts kept by each layer here, and under one threshold for a range of budgets, looked up on the paths."""
    look_up = run.settings["linkage"] != "official"  # whose merges hold for the threshold found alone
    figure = _figure(11 if look_up else 6, _height(run))
    panels = figure.subplots(1, 2 if look_up else 1, squeeze=False, sharey=True).flat
    places, names = range(len(run.layers)), [layer["layer"] for layer in run.layers]
    panels[0].barh(places, [layer["num_experts"] for layer in run.layers], color="0.9", label="before")
    bars = panels[0].barh(places, [len(layer["kept"]) for layer in run.layers], color="C0", label="kept")
    panels[0].bar_label(bars, padding=3, fontsize=8)
    panels[0].set_yticks(places, names)
    panels[0].set(xlabel="experts", ylabel="layer", title="here")
    panels[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2, frameon=False)
    panels[0].invert_yaxis()
    if look_up:
        shares, counts = kept_by_budget(run)
        picture = panels[1].imshow(counts, aspect="auto", cmap="viridis", vmin=0)
        panels[1].set_xticks(range(len(shares)), [f"{100 * share:.0f}" for share in shares], fontsize=8)
        panels[1].set(xlabel="experts removed from the model (%)", title="kept under one threshold")
        figure.colorbar(picture, ax=panels[1], label="experts kept")
    figure.suptitle(f"run {run.name}: experts kept")
    _save(figure, file)


def cluster_sizes(run: ClusteredRun, file: Path) -> None:
    """How many of a layer's clusters have one member, two, three, and more."""
    figure = _figure(7, 3.8)
    axes = figure.subplots()
    groups = [("1", 1, 1), ("2", 2, 2), ("3", 3, 3), ("4 to 7", 4, 7), ("8 or more", 8, 10**9)]
    base = [0] * len(run.layers)
    for number, (label, low, high) in enumerate(groups):
        counts = [sum(low <= size <= high for size in layer["sizes"]) for layer in run.layers]
        if any(counts):
            color = "0.85" if number == 0 else f"C{number - 1}"
            axes.bar(range(len(base)), counts, bottom=base, color=color, label=label)
        base = [below + count for below, count in zip(base, counts, strict=True)]
    _layers(axes, run)
    axes.set(ylabel="clusters", title=f"run {run.name}: cluster sizes")
    axes.legend(title="experts in a cluster", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, file)


def within_cluster_distance(run: ClusteredRun, file: Path) -> None:
    """Mean and largest distance of two experts in one cluster; a layer without merges has none."""
    figure = _figure(7, 3.8)
    axes = figure.subplots()
    merged = [(place, layer["within"]) for place, layer in enumerate(run.layers) if layer["within"]]
    for place, within in merged:
        axes.plot([place, place], [within["mean"], within["max"]], color="0.7", zorder=1)
    for key, marker in (("max", "^"), ("mean", "o")):
        axes.scatter([place for place, _ in merged], [within[key] for _, within in merged], marker=marker, label=key)
    _layers(axes, run)
    axes.set(ylabel="distance", title=f"run {run.name}: distance of two experts in one cluster")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, file)


def mass_moved(run: ClusteredRun, file: Path) -> None:
    """The share of the gate mass that calibration tokens gave to removed experts, beside the share of experts."""
    figure = _figure(7, 3.8)
    axes = figure.subplots()
    places = range(len(run.layers))
    axes.bar(places, [100 * layer["mass_moved"] for layer in run.layers], color="C0", label="gate mass")
    removed = [100 * (1 - len(layer["kept"]) / layer["num_experts"]) for layer in run.layers]
    axes.scatter(places, removed, color="black", marker="_", s=200, label="experts")
    _layers(axes, run)
    axes.set(ylabel="removed (%)", ylim=(0, None), title=f"run {run.name}: router mass moved")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, file)


def indices(rows: Sequence[dict[str, Any]], title: str, file: Path) -> None:
    """Adjusted Rand indices by layer, a line for each comparison that all layers have."""
    figure = _figure(8, 3.8)
    axes = figure.subplots()
    names = [name for name in rows[0] if name != "layer" and all(name in row for row in rows)]
    for number, name in enumerate(names):
        # Lines that coincide, as those of routers over seeds do, stay visible by their markers.
        axes.plot([row[name] for row in rows], marker="osD^"[number % 4], markersize=max(9 - 2 * number, 2), label=name)
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(rows)), [row["layer"] for row in rows])
    axes.set(xlabel="layer", ylabel="adjusted Rand index", title=title)
    axes.set_ylim(min(-0.05, min((row[name] for row in rows for name in names), default=0) - 0.05), 1.05)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    content = BytesIO()
    figure.savefig(content, format="png", dpi=130, metadata={"Software": DRAWN_BY.decode()})
    write_file(file, [content.getvalue()])


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")  # drawn by Agg: no window, no global state


def _height(run: ClusteredRun) -> float:
    return 1.8 + 0.28 * max(len(run.layers), 6)


def _layers(axes: Any, run: ClusteredRun) -> None:
    many = len(run.layers) > 24
    axes.set_xticks(range(len(run.layers)), [layer["layer"] for layer in run.layers], fontsize=7 if many else 10)
    axes.set_xlim(-0.6, len(run.layers) - 0.4)
    axes.set_xlabel("layer")


def _tree(axes: Any, layer: dict[str, Any]) -> None:
    """One layer's merges: leaves in an order in which no branches cross."""
    happened = layer["num_experts"] - len(layer["clusters"])
    leaves = {expert: [expert] for expert in range(layer["num_experts"])}
    for left, right in layer["pairs"]:
        joined = leaves[left] + leaves[right]
        leaves |= dict.fromkeys(joined, joined)
    order = [expert for first, joined in leaves.items() if first == joined[0] for expert in joined]
    heights = layer["heights"] or [0.0, 1.0]
    floor = heights[0] - 0.15 * (heights[-1] - heights[0] or 1)
    top = {expert: (float(place), floor, [expert]) for place, expert in enumerate(order)}
    for number, ((left, right), height) in enumerate(zip(layer["pairs"], layer["heights"], strict=True)):
        (x, low, some), (other_x, other_low, others) = top[left], top[right]
        color = "C0" if number < happened else "0.7"
        axes.plot([x, x, other_x, other_x], [low, height, height, other_low], color=color, linewidth=1)
        top |= dict.fromkeys(some + others, ((x + other_x) / 2, height, some + others))
    if layer["threshold"] is not None:
        axes.axhline(layer["threshold"], color="C3", linestyle="--", linewidth=1)
    axes.set_ylim(bottom=floor)
    axes.set_xticks(range(len(order)), order if len(order) <= 40 else [""] * len(order), fontsize=6, rotation=90)
    axes.tick_params(axis="x", length=0)
    axes.set_title(f"layer {layer['layer']}: {layer['num_experts']} to {len(layer['clusters'])}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
