"""Reports of runs as one table for further work with pandas."""

import warnings
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stun_exp.report.data.read import ReportedRun, read_runs
from stun_exp.report.data.run_settings import leaves

if TYPE_CHECKING:
    from pandas import DataFrame


def read_reports(folder: str | Path) -> "DataFrame":
    """A row for each run under a folder, in the order of their numbers; runs as `stun-report` reads them.

    Columns:
        name, seed, folder, model: of the run; `model` is its source, `folder` a path or, of a list of reports, the
            list's with the place in it.
        model_card, method, calibration, ...: Hydra's choice in each group; `model_card` is that of `model`.
        sparsity, expert_pruner.ratio, ...: every setting by its dotted name, as the run had it.
        achieved_sparsity, experts_ratio: the share of the weights in scope and of the experts that are gone, 0 to 1.
        arc/acc,none and arc/acc,none stderr, ...: each metric's value and standard error, as measured.
        wall_seconds, charged_seconds: over all stages; spent by the run itself, and with what each result that it took
            from the cache took when it was computed.
    What a run does not have is missing in its row.

    Args:
        folder: A run's or a sweep's, at any depth, or a .json file with a list of reports.

    Raises:
        FileNotFoundError: There is no such folder or file.
        ValueError: No report in it can be used.

    Warns:
        UserWarning: For each report that is skipped: no JSON, damaged, or of another schema.
    """
    from pandas import DataFrame

    found = read_runs([Path(folder)])
    for line in found.skipped:
        warnings.warn(f"skipped {line}", stacklevel=2)
    return DataFrame([_row(run) for run in found.runs])


def _row(run: ReportedRun) -> dict[str, Any]:
    report = run.report
    own = {"name": report["name"], "seed": report["seed"], "folder": run.where, "model": report["model"]["source"]}
    # Hydra's own groups, and those whose choices are lists of things (benchmark@...), have other characters too.
    groups = {group: choice for group, choice in report.get("choices", {}).items() if group.isidentifier()}
    choices = {"model_card" if group == "model" else group: choice for group, choice in groups.items()}
    results = {"achieved_sparsity": report["sparsity"]["achieved"], "experts_ratio": report["experts"]["ratio"]}
    for key, metric in report["metrics"].items():
        error = metric["stderr"]
        results |= {key: metric["value"], f"{key} stderr": nan if error is None else error}
    for seconds in ("wall_seconds", "charged_seconds"):
        results[seconds] = sum(stage[seconds] for stage in report["cost"].values())
    settings = {key: value for key, value in leaves(report["settings"]).items() if key not in own | choices}
    return own | choices | settings | results
