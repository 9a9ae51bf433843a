"""`stun-clusters FOLDER`: figures and numbers of how experts were clustered, from the clusters.json of runs.

What was found is said at the end. Each run's figures lie beside its clusters.json; agreement.json and, over seeds,
stability.png in FOLDER.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from stun_exp.report.clusters import figures
from stun_exp.report.clusters.findings import LABORATORY, findings, findings_over_runs
from stun_exp.report.clusters.runs import (
    ClusteredRun,
    agreement,
    correlations,
    read_clustered_runs,
    repeated,
    similarities,
    stability,
)
from stun_exp.utils.files import write_file
from stun_exp.utils.json_files import read_json


def main(argv: Sequence[str] | None = None) -> None:
    """Draws what can be drawn of a folder, says what cannot and why, and what was found; exits with 1 for nothing."""
    parser = argparse.ArgumentParser(prog="stun-clusters", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run's folder, or a sweep's")
    folder = parser.parse_args(argv).folder
    try:
        runs = read_clustered_runs(folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    for run in runs:
        for line in draw_run(run):
            print(line)
    for line in (*draw_stability(repeated(runs), folder), write_agreement(runs, folder), ""):
        print(line)
    for line in (*(line for run in runs for line in findings(run)), *findings_over_runs(repeated(runs))):
        print(line)


def draw_run(run: ClusteredRun) -> list[str]:
    """Draws every figure that a run has the numbers for; a line for each, with the reason if it is left out."""
    said = []
    for name, draw, lacking in _figures_of(run):
        file = run.folder / f"{name}.png"
        if lacking and figures.is_ours(file):
            file.unlink()  # of an earlier run in this folder
        lacking = lacking or _in_the_way(file)
        if not lacking:
            draw(run, file)
        said.append(f"{file}: not drawn, {lacking}" if lacking else f"wrote {file}")
    return said


def draw_stability(groups: Sequence[Sequence[ClusteredRun]], folder: Path) -> list[str]:
    """Draws how far runs of equal settings agree, a figure for each group of them; a line for each."""
    said = []
    for number, group in enumerate(groups):
        file = folder / ("stability.png" if len(groups) == 1 else f"stability-{number}.png")
        if why := _in_the_way(file):
            said.append(f"{file}: not drawn, {why}")
            continue
        names = ", ".join(run.name for run in group)
        figures.indices(stability(group), f"agreement between runs {names}, of equal settings", file)
        said.append(f"wrote {file}")
    return said


def write_agreement(runs: Sequence[ClusteredRun], folder: Path) -> str:
    """Writes agreement.json; what was written, or why not."""
    content = {
        "runs": [{"run": run.name, "layers": agreement(run), "correlations": correlations(run)} for run in runs],
        "stability": [{"runs": [run.name for run in group], "layers": stability(group)} for group in repeated(runs)],
    }
    file = folder / "agreement.json"
    if file.is_symlink() or (file.exists() and not _is_agreement(file)):
        return f"{file}: not written, a file that stun-clusters has not written is there; move it away"
    write_file(file, [(json.dumps(content, indent=1) + "\n").encode()])
    return f"wrote {file}"


def _figures_of(run: ClusteredRun) -> list[tuple[str, Callable[[ClusteredRun, Path], None], str]]:
    """(Name of each figure, what draws it, what it lacks or "") of a run."""
    merged = any(layer["within"] for layer in run.layers)
    measured = all(layer["gate_mass"] for layer in run.layers)
    compared = all(len(similarities(layer)) > 1 for layer in run.layers)
    return [
        ("dendrograms", figures.dendrograms, "" if any(layer["pairs"] for layer in run.layers) else "no merges"),
        ("experts_kept", figures.experts_kept, ""),
        ("cluster_sizes", figures.cluster_sizes, ""),
        ("within_cluster_distance", figures.within_cluster_distance, "" if merged else "no experts were merged"),
        ("mass_moved", figures.mass_moved, "" if measured else f"gates were not measured; {LABORATORY}"),
        ("agreement", _draw_agreement, "" if compared else f"no two similarities were compared; {LABORATORY}"),
    ]


def _draw_agreement(run: ClusteredRun, file: Path) -> None:
    figures.indices(agreement(run), f"run {run.name}: agreement of clusters by one similarity each", file)


def _in_the_way(file: Path) -> str:
    """Why a figure cannot be drawn into a file, "" if it can: somebody's file is there."""
    is_there = file.is_symlink() or file.exists()
    if is_there and not figures.is_ours(file):
        return "a file that stun-clusters has not drawn is there; move it away"
    return ""


def _is_agreement(file: Path) -> bool:
    """Whether a file has what is written as agreement.json: nothing else is written over."""
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() == {"runs", "stability"}
