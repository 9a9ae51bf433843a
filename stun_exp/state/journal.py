"""What a run has finished, recorded as it goes: a run that was killed goes on from there.

A record is a line of JSON, written when all that it speaks of is on disk. The first says what the run is made of; the
others are of a stage of the run, of `prune` one for every layer, or name files before they are written: those are the
run's own, and it removes and writes over no others. Each line has a checksum over itself and all before it.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor

from stun_exp.allocation.ratios import LayerRatios
from stun_exp.checkpoint.shards import Shard
from stun_exp.pipeline.layer_diagnostics import Seen
from stun_exp.pipeline.prune import PrunedLayer
from stun_exp.state.code import components, digests
from stun_exp.state.ledger import Cost
from stun_exp.state.ownership import check_free, is_odd
from stun_exp.utils.files import PARTIAL, digest_of, not_written, write_file
from stun_exp.utils.progress import console

JOURNAL = "journal.jsonl"
WITHOUT_EFFECT = {"name", "tracker", "save", "dry_run", "resume", "eval", "skipping", "export", "stream", "cache"}
"""Settings that cannot change the pruned weights: an interrupted run may go on with others."""
VERSIONS = ("stun-exp", "torch", "transformers")
MAKES_WEIGHTS = [f"stun_exp.pipeline.{stage}" for stage in ("experts", "allocate", "prune", "recover")]
"""The modules, besides the run's components, whose code makes the pruned weights."""
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

    def __init__(self, out: Path, made_of: Mapping[str, Any], anew: bool, names: Iterable[str] = ()):
        """Goes on with the records that are there, or `anew` without; ValueError if they are of another run.

        `names` are the files that the run is going to write, by their names in the folder.
        """
        self.file = out / JOURNAL
        self._before: dict[str, Spent] = {}
        self._records, self._end = read_records(self.file, torn=anew)
        self.own = {name for record in self._records for name in record.get("writes", ())}
        self._since = time.monotonic()
        if anew or not self._records:
            self._begin(made_of, names)
            return
        if differences := _differences(self._records[0]["made_of"], made_of):
            raise ValueError(
                f"hydra.run.dir={out} holds an interrupted run that differs: {'; '.join(differences)}; go on as it was "
                "begun, choose another folder, or pass resume=restart to throw away what it has done"
            )
        console.print(f"goes on with the interrupted run in {out}", soft_wrap=True)
        self.claim(names)

    def _begin(self, made_of: Mapping[str, Any], names: Iterable[str]) -> None:
        """Writes the first records in the place of all others; what runs wrote here before stays their own."""
        begun = self.file.with_name(JOURNAL + PARTIAL)
        if is_odd(begun) or (begun.exists() and not _is_begun(begun.read_bytes())):
            raise ValueError(f"{begun}: no run has begun that file; move it away, or choose another folder")
        left = {name for name in self.own if (self.file.parent / name).exists()}
        self._records, self._end, self.own = [], End(0, ""), left | set(names)
        lines = []
        for record in ({"made_of": made_of}, {"writes": sorted(self.own)}):
            line, self._end = _line(record, self._end)
            lines.append(line)
        write_file(self.file, lines)

    def claim(self, names: Iterable[str]) -> None:
        """Says that files are going to be written; ValueError if one is there that no run has written."""
        new = set(names) - self.own
        check_free(self.file.parent, new)
        if new:
            self._append({"writes": sorted(new)})
            self.own |= new

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
        line, end = _line(record, self._end)
        try:
            with self.file.open("ab") as handle:
                handle.truncate(self._end.size)  # of a line whose writing was cut off
                handle.write(line)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise not_written(self.file, error) from error
        self._end = end


def made_of(
    config: Mapping[str, Any],
    identity: Mapping[str, str],
    device: torch.device,
    tokens_sha256: str,
    training_NT: Tensor,
) -> dict[str, Any]:
    """All that the pruned weights depend on, by name: settings, code, source, text, versions."""
    settings = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    return {
        **_flat(settings),
        **{f"code of {module}": digest for module, digest in digests([*MAKES_WEIGHTS, *components(settings)]).items()},
        **{f"version of {package}": version(package) for package in VERSIONS},
        "device": device.type,
        "calibration tokens": tokens_sha256,
        "training tokens": sha256(training_NT.numpy().tobytes()).hexdigest(),
        **{f"checksum of {name}": digest for name, digest in identity.items()},
    }


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Every value in nested settings by its dotted name."""
    if not isinstance(node, dict):
        return {path: node}
    return {k: v for key, value in node.items() for k, v in _flat(value, f"{path}.{key}" if path else key).items()}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys([*old, *new])
    return [f"{name}: {old.get(name)} -> {new.get(name)}" for name in names if old.get(name) != new.get(name)]


class End(NamedTuple):
    """Where the whole lines of a journal end, and the checksum of the last."""

    size: int
    sha256: str


def _line(record: Mapping[str, Any], end: End) -> tuple[bytes, End]:
    """A record as the line that follows those up to `end`, and where it ends."""
    checksum = _checksum(record, end)
    line = json.dumps({"sha256": checksum, "record": record}).encode() + b"\n"
    return line, End(end.size + len(line), checksum)


def _checksum(record: Any, end: End) -> str:
    return sha256((end.sha256 + json.dumps(record)).encode()).hexdigest()


def read_records(file: Path, torn: bool = False) -> tuple[list[dict[str, Any]], End]:
    """The records in a file, none if it is not there, and where they end.

    ValueError if a line is not as it was written, unless it is `torn`: then those before it count. ValueError too for a
    file that no run has written.
    """
    end, records = End(0, ""), list[dict[str, Any]]()
    if not file.is_file():
        if file.is_symlink() or file.exists():
            raise ValueError(f"{file}: is no regular file; choose another folder with hydra.run.dir=DIR")
        return records, end
    *lines, cut_off = file.read_bytes().split(b"\n")  # behind the end of the last whole line there is nothing, or half
    for number, line in enumerate(lines, 1):
        record = _record(line, end)
        if (record is None and number == 1) or (record and (number == 1) != ("made_of" in record)):
            raise ValueError(f"{file}: is no journal of a run as this version writes it; choose another folder")
        if record is None and torn:
            return records, end
        if record is None:
            raise ValueError(f"{file}, line {number}: damaged; pass resume=restart to throw away what the run has done")
        records.append(record)
        end = End(end.size + len(line) + 1, _checksum(record, end))
    if not lines and not _is_begun(cut_off):
        raise ValueError(f"{file}: is no journal of a run as this version writes it; choose another folder")
    return records, end


def _record(line: bytes, end: End) -> dict[str, Any] | None:
    """What a line that follows those up to `end` holds; None if it is not as it was written."""
    try:
        whole = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(whole, dict) or not isinstance(whole.get("record"), dict):
        return None
    record: dict[str, Any] = whole["record"]
    return record if whole.get("sha256") == _checksum(record, end) else None


def _is_begun(content: bytes) -> bool:
    """Whether content is what a journal begins with, as far as it goes."""
    beginning = b'{"sha256": "'
    return beginning.startswith(content[: len(beginning)])
