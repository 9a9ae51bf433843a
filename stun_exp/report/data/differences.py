"""What differs among runs that are to stand in one table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stun_exp.report.data.metrics import headlines
from stun_exp.report.data.read import ReportedRun
from stun_exp.report.data.run_settings import RunReport, flat_settings, identity, shown_settings

NAMED_RUNS = 2
"""Runs that a refusal names of each kind before it counts the rest."""
ITEMS = "the number of items"


def unequal(runs: Sequence[ReportedRun]) -> Iterator[str]:
    """What differs and may not where figures are compared, with the runs on each side."""
    limits = False  # differ, and with them the numbers of items, of which then nothing more is said
    for what, sides in _differing(runs, _aspects):
        if not (limits and what.startswith(ITEMS)):
            limits = limits or what == "eval.limit"
            yield f"{what} differs: {sides}"


def unequal_layers(runs: Sequence[ReportedRun]) -> Iterator[str]:
    """Numbers of layers that differ though the model is the same, so that no figure could have both."""
    for what, sides in _differing(runs, lambda report: {"the number of MoE layers": len(report["experts"]["before"])}):
        yield f"{what} differs: {sides}"


def unequal_tokens(runs: Sequence[ReportedRun]) -> Iterator[str]:
    """Calibration tokens that differ though the seed is the same, and every setting of them that has a column."""
    shown = [key for key in shown_settings([run.report for run in runs]) if _is_calibration(key)]
    together: dict[str, dict[str, list[ReportedRun]]] = {}
    for run in runs:
        settings = flat_settings(run.report)
        text = ", ".join([f"seed {run.report['seed']}", *(f"{key}={settings.get(key)}" for key in shown)])
        tokens = run.report["provenance"]["calibration_tokens_sha256"]
        together.setdefault(text, {}).setdefault(tokens, []).append(run)
    for text, sides in together.items():
        if len(sides) > 1:
            told = _distinguishing_calibration([side[0].report for side in sides.values()])
            named = [
                f"{how or 'others'} in {_names([run.where for run in side])}"
                for how, side in zip(told, sides.values(), strict=True)
            ]
            yield f"calibration tokens of {text} differ: {'; '.join(named)}"


def unequal_within_rows(runs: Sequence[ReportedRun]) -> Iterator[str]:
    """What differs and may not among runs that one row averages, or of which one repeats another."""
    rows: dict[str, list[ReportedRun]] = {}
    for run in runs:
        rows.setdefault(identity(run.report), []).append(run)
    for row in rows.values():
        for what, sides in _differing(row, _code):
            yield f"{what} differs within the row {row[0].report['name']}: {sides}"


def differing_between_rows(runs: Sequence[ReportedRun]) -> Iterator[str]:
    """What differs among the runs of a table and may have moved their figures, which is no reason to refuse them."""
    code = [f"{what} ({sides})" for what, sides in _differing(runs, _code)]
    if code:
        yield f"Rows were made by different code: {'; '.join(code)}."
    machines = [f"{what} ({sides})" for what, sides in _differing(runs, _machine)]
    if machines:
        yield f"Runs were made on different machines, which moves last digits: {'; '.join(machines)}."


def _differing(
    runs: Sequence[ReportedRun], aspects_of: Callable[[RunReport], Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """(An aspect that runs do not agree in, its values with the runs that have each)."""
    aspects = [aspects_of(run.report) for run in runs]
    for what in dict.fromkeys(name for aspect in aspects for name in aspect):
        sides: dict[str, list[str]] = {}
        for run, aspect in zip(runs, aspects, strict=True):
            if what in aspect:
                sides.setdefault(str(aspect[what]), []).append(run.where)
        if len(sides) > 1:
            yield what, "; ".join(f"{side} in {_names(names)}" for side, names in sides.items())


def _code(report: RunReport) -> dict[str, Any]:
    """What made the figures -> which it was; other methods are made of other modules."""
    provenance = report["provenance"]
    libraries = ("torch", "transformers") if report["metrics"] else ("torch", "transformers", "lm-eval")
    versions = {name: provenance["versions"].get(name) for name in libraries}
    return {
        **provenance.get("code", {}),
        **{f"the version of {name}": version for name, version in versions.items() if version is not None},
    }


def _machine(report: RunReport) -> dict[str, Any]:
    """What the last bits of the figures depend on."""
    provenance = report["provenance"]
    names = {"processor": "the processor", "threads": "the number of threads"}
    return {what: provenance[name] for name, what in names.items() if name in provenance}


def _aspects(report: RunReport) -> dict[str, Any]:
    """What has to be equal in all runs of a table -> what it is here."""
    evaluation, versions = report["settings"]["eval"], report["provenance"]["versions"]
    found = {"sparsity_scope": report["settings"]["sparsity_scope"]}
    found |= {f"eval.{key}": evaluation[key] for key in ("limit", "batch_size", "backend") if key in evaluation}
    if report["metrics"]:
        found["the version of lm-eval"] = versions["lm-eval"]
    for key in headlines([report]):
        metric: Mapping[str, Any] = report["metrics"].get(key, {})
        for name, what in (
            ("task_version", "the version"),
            ("num_fewshot", "the number of shots"),
            ("num_samples", ITEMS),
        ):
            if name in metric:
                found[f"{what} of {key.partition('/')[0]}"] = metric[name]
    return found


def _distinguishing_calibration(reports: Sequence[RunReport]) -> list[str]:
    """For each report the settings of the calibration that differ among them."""
    each = [{key: v for key, v in flat_settings(report).items() if _is_calibration(key)} for report in reports]
    differing = [key for key in {k: None for one in each for k in one} if len({one.get(key) for one in each}) > 1]
    return [", ".join(f"{key}={one[key]}" for key in differing if key in one) for one in each]


def _is_calibration(key: str) -> bool:
    return key.partition(".")[0] == "calibration"


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_RUNS} more" if len(names) > NAMED_RUNS else ""
    return ", ".join(names[:NAMED_RUNS]) + more
