"""Runs and sweeps logged to Weights & Biases."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from typing import Any, Literal

from stun_exp.config.component import Component
from stun_exp.utils.files import write_file
from stun_exp.utils.json_files import read_regular, with_numbers
from stun_exp.utils.names import shortened

WANDB_MARK = "wandb.json"
"""In a folder that was logged: the id of its W&B run, what that is a run of, and which content it has."""
OLD_MODES = {"dryrun": "offline", "run": "online"}
"""What WANDB_MODE may say too, and means."""
NAME_BYTES = 128
"""W&B refuses longer names."""
LOGGED_FILES = ("report.json", "plan.json", "config.yaml", "samples.jsonl", "baseline_samples.jsonl")


class WandB(Component):
    """A W&B run for each run, and one for the report of a sweep; what was logged already is not logged again."""

    project: str
    group: str | None
    """null: a sweep's runs are in a group of its name, other runs in none."""
    mode: Literal["auto", "online", "offline"]
    """`auto` is what WANDB_MODE says or, without it, online where a login is found, else offline.

    Send an offline run later with `wandb sync`.
    """

    def track(self, out: Path, sweep: str | None) -> None:
        """Logs the finished run in a folder, which may be part of a sweep of the given name."""
        text = read_regular(out / "report.json").decode()
        report = with_numbers(json.loads(text))
        self._log(
            out,
            identity=report["fingerprint"],
            content=text,
            write=lambda run: _write_run(run, report, out),
            group=self.group or sweep,
            name=out.name if sweep else report["name"],  # its folder's name says which point of the sweep it is
            config={**report["settings"], "choices": report["choices"]},
        )

    def track_sweep(self, folder: Path, report: Path) -> None:
        """Logs a sweep's report, which is on disk, as one more run of its group."""
        self._log(
            folder,
            identity="report",
            content="".join(_text(file) for file in sorted(folder.rglob("report.json")) if file.is_file()),
            write=lambda run: _write_report(run, report),
            group=self.group or folder.name,
            name=f"{folder.name}: report",
            job_type="report",
        )

    def _log(
        self, folder: Path, *, identity: str, content: str, write: Callable[[Any], None], name: str, **description: Any
    ) -> None:
        """Has a W&B run written, unless that was done to its end before with the same content.

        It has the id that a run of this identity had in this folder before, and so continues that.
        """
        if self.mode == "auto" and os.environ.get("WANDB_MODE") == "disabled":
            return
        file, of = folder / WANDB_MARK, {"project": self.project, "identity": identity}
        mark = json.loads(read_regular(file)) if file.exists() else {"of": None}
        if file.is_symlink() or not isinstance(mark, dict) or "of" not in mark:
            raise ValueError(f"{file}: no tracker has written it, and this one has to write there; move it away")
        digest = sha256(content.encode()).hexdigest()
        if mark.get("of") != of:
            mark = {"of": of, "id": None, "logged": None}
        if mark["logged"] == digest:
            return
        import wandb

        mark["id"] = mark["id"] or token_hex(4)
        _keep(mark, file)  # before anything is sent, for who goes on after a kill
        for earlier in folder.glob(f"wandb/offline-run-*-{mark['id']}"):
            if not any(earlier.glob("*.synced")):  # all that is in it is logged once more
                rmtree(earlier)
        with wandb.init(
            project=self.project,
            id=mark["id"],
            name=shortened(name, NAME_BYTES),
            resume="allow",
            dir=folder,
            mode=self._mode(),
            settings=wandb.Settings(silent=True, console="off"),
            **description,
        ) as run:
            write(run)
        wandb.teardown()  # waits for the last records, which the end of a launcher's process may not
        _keep(mark | {"logged": digest}, file)

    def _mode(self) -> Any:
        """Of W&B, which refuses what it does not know; None is online, with `auto` and a login."""
        import wandb

        if self.mode != "auto":
            return self.mode
        if wanted := os.environ.get("WANDB_MODE"):
            return OLD_MODES.get(wanted, wanted)
        return None if wandb.login(prompt=False) else "offline"


def _write_run(run: Any, report: Mapping[str, Any], out: Path) -> None:
    """Logs a step for each stage's cost, then one with all that came out, and the files."""
    for stage, cost in report["cost"].items():
        run.log(_scalars({"cost": {stage: cost}}))
    skipping, baseline = report["skipping"] or {}, report["baseline"] or {"metrics": {}}
    scalars = {
        "sparsity": {"achieved": report["sparsity"]["achieved"]},
        "experts": {"ratio": report["experts"]["ratio"]},
        "expert_stage": _plain(report.get("expert_stage")),
        "redundancy": _plain(report.get("redundancy")),
        "kurtosis": report["diagnostics"]["kurtosis"],
        "skipping": {tokens: share for tokens, share in skipping.items() if tokens != "per_layer"},
        "unpruned": {key: metric["value"] for key, metric in baseline["metrics"].items()},
    }
    metrics = {key: metric["value"] for key, metric in report["metrics"].items()}
    # Of hundreds of experts each has a sparsity; they are in report.json.
    layers = [{key: row[key] for key in row if key != "sparsity"} for row in report["diagnostics"]["per_layer"]]
    tables = {
        "results": [{"task/metric": key} | metric for key, metric in report["metrics"].items()],
        "layers": layers,
        "damage": [_plain(row) for row in (report.get("expert_stage") or {}).get("per_layer", [])],
        "redundancy": (report.get("redundancy") or {}).get("per_layer", []),
        "skipped": skipping.get("per_layer", []),
        "inference": [row for model in (report.get("inference") or {}).get("models", []) for row in _speeds(model)],
    }
    run.log(_scalars(scalars) | metrics | {name: _table(rows) for name, rows in tables.items() if rows})
    _add_files(run, [out / name for name in LOGGED_FILES if (out / name).exists()], out)


def _plain(block: Mapping[str, Any] | None) -> dict[str, Any]:
    """What of a block is a number or a name, and not a list."""
    return {name: value for name, value in (block or {}).items() if not isinstance(value, list | dict)}


def _speeds(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each batch size of a model that was measured in use."""
    return [{"model": model["name"], "weight_bytes": model["weight_bytes"], **speed} for speed in model["speed"]]


def _write_report(run: Any, report: Path) -> None:
    """Logs each table and each figure of a report under the name of its file, and all of its files."""
    import wandb

    logged: dict[str, Any] = {}
    files = [file for file in sorted(report.rglob("*")) if file.is_file()]
    for file in (file for file in files if file.match("tables/*.csv")):
        with file.open(newline="") as lines:
            rows = [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(lines)]
        logged[f"tables/{file.stem}"] = _table(rows)
    for file in (file for file in files if file.suffix == ".png"):
        logged[file.relative_to(report).with_suffix("").as_posix()] = wandb.Image(str(file), caption=file.stem)
    run.log(logged)
    _add_files(run, files, report)


def _scalars(nested: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers in it, each named by its path: `cost/prune/wall_seconds`; what was not measured is left out."""
    return {name: value for name, value in _flat(nested).items() if value is not None}


def _flat(nested: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{path}{key}/") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return flat


def _table(rows: Iterable[Mapping[str, Any]]) -> Any:
    """A wandb.Table with a column for every key of the rows."""
    import wandb

    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    data = [[row.get(name) for name in columns] for row in flat]
    return wandb.Table(columns=columns, data=data, allow_mixed_types=True)  # a setting may be 0.1 here and none there


def _number(text: str) -> float | str | None:
    try:
        return float(text)
    except ValueError:
        return text or None


def _add_files(run: Any, files: Iterable[Path], root: Path) -> None:
    """Logs files as one artifact, which refers to where they lie: W&B's copies would fill the home folder."""
    import wandb

    artifact = wandb.Artifact(f"report-{run.id}", type="report")
    for file in files:
        name = file.relative_to(root).as_posix()
        artifact.add_file(str(file), name=name, skip_cache=True, policy="immutable")
    run.log_artifact(artifact)


def _text(file: Path) -> str:
    return read_regular(file).decode(errors="replace")


def _keep(mark: Mapping[str, Any], file: Path) -> None:
    write_file(file, [(json.dumps(mark, indent=1) + "\n").encode()])
