"""Where a run is also logged: nowhere, or Weights & Biases. The files of the run directory are the truth."""

from pathlib import Path
from typing import Any, Literal

from stun_exp.component import Component


class NoTracker(Component):
    """Logs nowhere."""

    def track(self, report: dict[str, Any], out: Path) -> None:
        return None


class WandB(Component):
    """One W&B run: settings, scalars of each stage, a results table, and the report as an artifact."""

    project: str
    group: str | None
    mode: Literal["auto", "online", "offline"]
    """`auto` is online where a login is found, else offline; send an offline run later with `wandb sync`."""

    def track(self, report: dict[str, Any], out: Path) -> None:
        """Logs a finished run whose files are on disk already."""
        import wandb

        mode = self.mode
        if mode == "auto":
            mode = "online" if wandb.login(prompt=False) else "offline"
        with wandb.init(
            project=self.project,
            group=self.group,
            name=report["name"],
            config=report["settings"],
            dir=out,
            mode=mode,
            settings=wandb.Settings(silent=True),
        ) as run:
            for stage, cost in report["cost"].items():
                run.log({f"cost/{stage}/{key}": value for key, value in cost.items() if value is not None})
            run.log(
                {
                    "sparsity/achieved": report["sparsity"]["achieved"],
                    "experts/ratio": report["experts"]["ratio"],
                }
            )
            run.log({key: metric["value"] for key, metric in report["metrics"].items()})
            columns = ["task/metric", "value", "stderr", "num_samples", "num_fewshot", "task_version"]
            rows = [[key, *(metric[c] for c in columns[1:])] for key, metric in report["metrics"].items()]
            run.log({"results": wandb.Table(columns=columns, data=rows)})
            artifact = wandb.Artifact(f"report-{run.id}", type="report")
            for file in ("report.json", "plan.json", "config.yaml"):
                artifact.add_file(str(out / file))
            run.log_artifact(artifact)
