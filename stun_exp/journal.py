"""What a run has finished, recorded as it goes: a run that was killed goes on from there.

A record is a line of JSON, written when all that it speaks of is on disk. The first says what the run is made of; each
of the others is of a stage of the run, and of `prune` there is one for every layer.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor

from stun_exp.allocation.ratios import LayerRatios
from stun_exp.disk.checkpoint import Checkpoint
from stun_exp.disk.shards import INDEX, Shard, digest_of, not_written, sync_folder
from stun_exp.progress import console
from stun_exp.report.ledger import Cost
from stun_exp.report.seen import Seen
from stun_exp.weight_stage import PrunedLayer

JOURNAL = "journal.jsonl"
WITHOUT_EFFECT = {"name", "tracker", "save", "dry_run", "resume", "eval", "skipping", "export", "stream", "cache"}
"""Settings that cannot change the pruned weights: an interrupted run may go on with others."""
VERSIONS = ("stun-exp", "torch", "transformers")
T = TypeVar("T")


@dataclass(frozen=True)
class Allocated:
    """What the allocation gave each layer, and what it had to say."""

    layers: list[LayerRatios]
    warnings: list[str]


@dataclass(frozen=True)
class FinishedLayer:
    """A layer that is on disk, and what the report will say of it."""

    layer: int
    shard: Shard
    pruned: PrunedLayer
    seen: Seen


@dataclass(frozen=True)
class Recovered:
    """What a recovery reports, and all shards as it left them."""

    result: dict[str, Any]
    shards: dict[int, Shard]


@dataclass(frozen=True)
class Found:
    """What lies in a checkpoint's folder just as it was recorded: layers, and their shards by number."""

    pruned: dict[int, PrunedLayer]
    seen: dict[int, Seen]
    shards: dict[int, Shard]
    recovery: Recovered | None


@dataclass
class Spent:
    """The cost of what is recorded."""

    wall_seconds: float = 0.0
    forward_passes: float = 0.0


class Journal:
    """The records in a run's folder."""

    def __init__(self, out: Path, made_of: Mapping[str, Any], anew: bool):
        """Goes on with the records that are there, or `anew` without; ValueError if they are of another run."""
        self.file = out / JOURNAL
        self._before: dict[str, Spent] = {}
        if anew:
            self.file.unlink(missing_ok=True)
        self._records, self._size = _read(self.file)
        self._since = time.monotonic()
        if not self._records:
            self._append({"made_of": made_of})
            sync_folder(out)
        elif differences := _differences(self._records[0]["made_of"], made_of):
            raise ValueError(
                f"hydra.run.dir={out} holds an interrupted run that differs: {'; '.join(differences)}; go on as it was "
                "begun, choose another folder, or pass resume=restart to throw away what it has done"
            )
        else:
            console.print(f"goes on with the interrupted run in {out}", soft_wrap=True)

    def add(self, stage: str, value: Any, forward_passes: float = 0.0) -> None:
        """Records a dataclass; what it speaks of must be on disk."""
        now = time.monotonic()
        spent = Spent(now - self._since, forward_passes)
        self._append({"stage": stage, "spent": asdict(spent), "value": asdict(value)})
        self._since = now

    def find(self, stage: str, kind: type[T]) -> T | None:
        """What was last recorded of a stage; None if nothing was."""
        record = next((record for record in reversed(self._records) if record.get("stage") == stage), None)
        return None if record is None else self._taken(record, kind)

    def found_in(self, folder: Path, warn: Callable[[str], None]) -> Found:
        """The layers whose shards are in the folder, bit for bit; warns of those that were, and have to be done again.

        After a recovery either all shards are as it left them, or it has to be done again on those of the weight stage.
        """
        layers = {record["value"]["layer"]: record for record in self._records if record.get("stage") == "prune"}
        recovery = next((record for record in reversed(self._records) if record.get("stage") == "recover"), None)
        files = list(folder.glob("*.safetensors"))
        with ThreadPoolExecutor() as threads:  # one hashes more slowly than a good disk reads
            on_disk = {file.name: digest for file, digest in zip(files, threads.map(digest_of, files), strict=True)}

        def whole(shard: Mapping[str, str]) -> bool:
            return on_disk.get(shard["name"]) == shard["sha256"]

        if recovery is not None and not all(map(whole, recovery["value"]["shards"].values())):
            recovery = None
        if recovery is None:
            intact = {layer: record for layer, record in layers.items() if whole(record["value"]["shard"])}
            if lost := sorted(layers.keys() - intact.keys()):
                warn(
                    f"{folder}: layer {', '.join(map(str, lost))} was finished, but the file is not as it was written; "
                    "it is pruned again"
                )
            layers = intact
        kept = {layer: self._taken(record, FinishedLayer) for layer, record in layers.items()}
        recovered = self._taken(recovery, Recovered) if recovery is not None else None
        return Found(
            {layer: finished.pruned for layer, finished in kept.items()},
            {layer: finished.seen for layer, finished in kept.items()},
            recovered.shards if recovered else {layer: finished.shard for layer, finished in kept.items()},
            recovered,
        )

    def charge(self, costs: Mapping[str, Cost]) -> None:
        """Adds to the stages' costs what earlier starts spent on what was taken from the journal."""
        for stage, spent in self._before.items():
            costs[stage].wall_seconds += spent.wall_seconds
            costs[stage].forward_passes += spent.forward_passes

    def _taken(self, record: Mapping[str, Any], kind: type[T]) -> T:
        """The value of a record, whose cost is then part of this run's."""
        spent = self._before.setdefault(record["stage"], Spent())
        spent.wall_seconds += record["spent"]["wall_seconds"]
        spent.forward_passes += record["spent"]["forward_passes"]
        return TypeAdapter(kind).validate_python(record["value"])

    def _append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"
        try:
            with self.file.open("ab") as handle:
                handle.truncate(self._size)  # of a line whose writing was cut off
                handle.write(line)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise not_written(self.file, error) from error
        self._size += len(line)


def made_of(
    config: Mapping[str, Any], checkpoint: Checkpoint, device: torch.device, tokens_sha256: str, training_NT: Tensor
) -> dict[str, Any]:
    """All that the pruned weights depend on, by name: settings, source, text, versions.

    Of the source's weights only the names and sizes of the files, and the index: all of their bytes would take as long
    to read as the run.
    """
    files = sorted(set(checkpoint.files.values()))
    return {
        **_flat({key: value for key, value in config.items() if key not in WITHOUT_EFFECT}),
        **{f"version of {package}": version(package) for package in VERSIONS},
        "device": device.type,
        "calibration tokens": tokens_sha256,
        "training tokens": sha256(training_NT.numpy().tobytes()).hexdigest(),
        **{f"checksum of {name}": digest_of(checkpoint.path / name) for name in ("config.json", INDEX)},
        **{f"size and time of {file.name}": [(about := file.stat()).st_size, about.st_mtime_ns] for file in files},
    }


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Every value in nested settings by its dotted name."""
    if not isinstance(node, dict):
        return {path: node}
    return {k: v for key, value in node.items() for k, v in _flat(value, f"{path}.{key}" if path else key).items()}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys([*old, *new])
    return [f"{name}: {old.get(name)} -> {new.get(name)}" for name in names if old.get(name) != new.get(name)]


def _read(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The records in a file, none if it is not there, and the bytes that they take; ValueError if one is damaged."""
    if not file.exists():
        return [], 0
    content = file.read_bytes()
    *lines, cut_off = content.split(b"\n")  # a line ends when it is whole: after the last end there is nothing, or half
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ValueError(
                f"{file}, line {number}: damaged ({error}); pass resume=restart to throw away what the run has done"
            ) from error
    return records, len(content) - len(cut_off)
