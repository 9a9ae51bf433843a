"""A Hydra callback that ends a sweep with one table of all its runs."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepTable(Callback):
    """Prints the table of a finished sweep, and writes it beside the runs as table.md and table.json."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from stun_exp.report.tables import read_reports, results_table

        folder = Path(config.hydra.sweep.dir).absolute()
        reports = read_reports(folder)
        if not reports:
            return
        from stun_exp.report.ledger import write_json

        table = results_table(reports)
        table.show()
        (folder / "table.md").write_text(table.markdown())
        write_json(folder / "table.json", [{"columns": table.columns, "rows": table.rows}])
        print(f"results: {folder}")
