"""The table of domains: which sources of a mixture the removed experts served."""

from collections.abc import Mapping, Sequence
from typing import Any

from stun_exp.report.data.plans import PlannedRun
from stun_exp.report.tables.table import Cell, ResultsTable

SHARES = {
    "tokens": "tokens",
    "choices of removed experts": "removed_choices",
    "gate mass of removed experts": "removed_gates",
}
"""Column -> what it is called in the report."""
NOTE = (
    "Choices: how often tokens of a domain chose, in the unpruned model, an expert that then went or was merged into "
    "another, as a share of all such choices in all layers; gate mass: the same with each choice weighted by its gate. "
    "Ratio: choices over tokens. Above 1 the removed experts served this domain more than its share of the text, below "
    "1 less."
)


def domains_table(runs: Sequence[PlannedRun]) -> ResultsTable | None:
    """A row for each domain of each plan; None if no run has measured any."""
    measured = [run for run in runs if run.report.get("domains") and _is_measured(run.report["domains"])]
    if not measured:
        return None
    settings = list(dict.fromkeys(name for run in measured for name in run.settings))
    columns = ["method", *settings, "plan", "domain", "sequences", *SHARES, "ratio"]
    rows = [
        [
            Cell(", ".join(run.names)),
            *(Cell(run.settings.get(name, "-")) for name in settings),
            Cell(run.plan_id),
            Cell(domain),
            Cell(str(found["sequences"]), found["sequences"]),
            *(_percent(found.get(key)) for key in SHARES.values()),
            _ratio(found.get("removed_choices"), found.get("tokens")),
        ]
        for run in measured
        for domain, found in run.report["domains"]["sources"].items()
    ]
    return ResultsTable(columns, rows, (NOTE,), keys=frozenset({"method", *settings, "plan"}))


def _is_measured(domains: Mapping[str, Any]) -> bool:
    return any(found.get("removed_choices") is not None for found in domains["sources"].values())


def _percent(share: float | None) -> Cell:
    return Cell("-") if share is None else Cell(f"{100 * share:.1f} %", 100 * share)


def _ratio(share: float | None, of_tokens: float | None) -> Cell:
    return Cell("-") if share is None or not of_tokens else Cell(f"{share / of_tokens:.2f}", share / of_tokens)
