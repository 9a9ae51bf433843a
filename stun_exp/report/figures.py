"""Figures from report.json files alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stun_exp.report.tables import headlines


def quality_by_method(reports: Sequence[dict[str, Any]], file: Path) -> None:
    """Draws each run's headline accuracies, with standard errors, as grouped bars: one group a benchmark."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    keys = [key for key in headlines(reports) if "perplexity" not in key]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(reports)
    for number, report in enumerate(reports):
        places = [group + (number - (len(reports) - 1) / 2) * width for group in range(len(keys))]
        metrics = [report["metrics"][key] for key in keys]
        axes.bar(
            places,
            [100 * metric["value"] for metric in metrics],
            width,
            yerr=[100 * (metric["stderr"] or 0) for metric in metrics],
            error_kw={"linewidth": 0.8},
            color=colormaps["tab20"]((2 * number) % 20) if number else "0.6",
            label=report["name"],
        )
    axes.set_xticks(range(len(keys)), [key.partition("/")[0] for key in keys])
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 105)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(file, dpi=160)
