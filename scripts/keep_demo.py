"""Keeps a finished demo: its table, reports and figure, from the sweep's folder into results/.

usage: keep_demo.py SWEEP RESULTS
"""

import sys
from pathlib import Path

from stun_exp.report.figures import quality_by_method
from stun_exp.report.ledger import write_json
from stun_exp.report.tables import read_reports, results_table


def main(sweep: Path, results: Path) -> None:
    reports = read_reports(sweep)
    (results / "demo.md").write_text(results_table(reports).markdown())
    write_json(results / "demo.json", reports)
    quality_by_method(reports, results / "demo.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
