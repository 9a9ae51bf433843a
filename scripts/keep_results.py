"""Keeps a finished sweep: its reports and all that `stun-report` makes of them, from the sweep's folder into results/.

With several calibration seeds a method: the differences to --reference too, run by run on the same text.
"""

import argparse
from pathlib import Path

from stun_exp.report.command import write_report
from stun_exp.report.data.read import read_runs
from stun_exp.report.tables.seeds import differences_table
from stun_exp.utils.files import write_file
from stun_exp.utils.json_files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path, help="the sweep's folder")
    parser.add_argument("kept", type=Path, help="where to keep it, without an ending: results/NAME")
    parser.add_argument("--reference", help="name of the method that the others are compared with")
    arguments = parser.parse_args()
    write_report([arguments.sweep], arguments.kept)
    reports = [run.report for run in read_runs([arguments.sweep]).runs]
    if arguments.reference:
        differences = differences_table(reports, arguments.reference)
        write_file(arguments.kept / "tables" / "differences.md", [differences.markdown().encode()])
    write_json(arguments.kept.with_suffix(".json"), reports)


if __name__ == "__main__":
    main()
