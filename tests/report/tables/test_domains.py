"""The table of domains, by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stun_exp.report.command import write_report
from stun_exp.report.data.plans import planned_runs
from stun_exp.report.data.read import ReportedRun
from stun_exp.report.tables.domains import domains_table

Make = Callable[..., dict[str, Any]]


def mixed(report: dict[str, Any], shares: dict[str, tuple[float | None, float | None]]) -> dict[str, Any]:
    """A report of a mixture: of each source its shares of the tokens and of the choices of removed experts."""
    layer = {"layer": 0, "num_experts": 4, "kept": 3, "cluster_sizes": [2, 1, 1]}
    stage = {"plan_id": "aaaaaaaa", "num_clusters": 3, "largest_cluster": 2, "per_layer": [layer]}
    sources = {
        name: {"sequences": 8, "tokens": tokens, "removed_choices": choices, "removed_gates": choices}
        for name, (tokens, choices) in shares.items()
    }
    return report | {"expert_stage": stage, "domains": {"sources": sources, "per_layer": []}}


def planned(*reports: dict[str, Any]) -> Any:
    return planned_runs([ReportedRun(report, str(place), None) for place, report in enumerate(reports)])


def test_a_row_for_each_domain_says_whether_it_lost_more_than_its_share(make_report: Make) -> None:
    """A quarter of the text, and half of what the removed experts were chosen for: twice as much."""
    table = domains_table(planned(mixed(make_report("STUN"), {"code": (0.25, 0.5), "prose": (0.75, 0.5)})))
    assert table is not None
    assert table.columns[-6:-1] == [
        "domain", "sequences", "tokens", "choices of removed experts", "gate mass of removed experts"
    ]  # fmt: skip
    assert [row[-6:] for row in table.rows] == [
        ["code", "8", "25.0 %", "50.0 %", "50.0 %", "2.00"],
        ["prose", "8", "75.0 %", "50.0 %", "50.0 %", "0.67"],
    ]


def test_a_domain_without_tokens_has_no_ratio(make_report: Make) -> None:
    table = domains_table(planned(mixed(make_report("STUN"), {"code": (0.0, 0.0), "prose": (1.0, 1.0)})))
    assert table is not None
    assert [row[-1] for row in table.rows] == ["-", "1.00"]


def test_reports_without_domains_have_no_table(make_report: Make) -> None:
    """Older ones lack the block, text of one source has none, and a run may have measured nothing."""
    unmeasured = mixed(make_report("STUN"), {"code": (None, None)})
    assert domains_table(planned(unmeasured)) is None
    assert domains_table(planned(unmeasured | {"domains": None})) is None
    del unmeasured["domains"]
    assert domains_table(planned(unmeasured)) is None


def test_the_table_is_written_with_the_others(make_report: Make, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    report = mixed(make_report("STUN"), {"code": (0.25, 0.5), "prose": (0.75, 0.5)})
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    write_report([tmp_path], tmp_path / "report")
    (table,) = (tmp_path / "report" / "tables").glob("*-domains.md")
    assert "| code | 8 | 25.0 % | 50.0 % | 50.0 % | 2.00 |" in table.read_text()
