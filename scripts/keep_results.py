"""Keeps a finished sweep: its tables, reports and figure, from the sweep's folder into results/.

With several calibration seeds a method: the means, and the differences to --reference, run by run on the same text.
"""

import argparse
from pathlib import Path

from stun_exp.report.figures import quality_by_method
from stun_exp.report.ledger import write_json
from stun_exp.report.seeds import differences_table, seeds_table
from stun_exp.report.tables import read_reports, results_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path, help="the sweep's folder")
    parser.add_argument("kept", type=Path, help="where to keep it, without an ending: results/NAME")
    parser.add_argument("--reference", help="name of the method that the others are compared with")
    arguments = parser.parse_args()
    reports, kept = read_reports(arguments.sweep), arguments.kept
    means = seeds_table(reports)
    tables = [means] if means else [results_table(reports)]
    if arguments.reference:
        tables.append(differences_table(reports, arguments.reference))
    kept.with_suffix(".md").write_text("\n".join(table.markdown() for table in tables))
    write_json(kept.with_suffix(".json"), reports)
    if not means:
        quality_by_method(reports, kept.with_suffix(".png"))


if __name__ == "__main__":
    main()
