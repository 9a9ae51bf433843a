"""A Hydra callback that ends a sweep with one table of all its runs."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepTable(Callback):
    """Prints the table of a finished sweep, and writes it beside the runs as table.md and table.json.

    Where a method was run with several calibration seeds, a table of means follows (seeds.md).
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from stun_exp.report.tables import read_reports, results_table

        folder = Path(config.hydra.sweep.dir).absolute()
        reports = read_reports(folder)
        if not reports:
            return
        from stun_exp.report.ledger import write_json
        from stun_exp.report.seeds import seeds_table

        table = results_table(reports)
        table.show()
        (folder / "table.md").write_text(table.markdown())
        write_json(folder / "table.json", [{"columns": table.columns, "rows": table.rows}])
        means = seeds_table(reports)
        if means is not None:
            means.show()
            (folder / "seeds.md").write_text(means.markdown())
        print(f"results: {folder}")
