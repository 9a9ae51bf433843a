"""What a run has finished, recorded as it goes: a run that was killed goes on from there.

A record is a line of JSON, written when all that it speaks of is on disk. The first says what the run is made of; the
others hold a stage's result, of some stages one for every layer, or name files before they are written: those are the
run's own, and it removes and writes over no others. Each line has a checksum over itself and all before it.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import TypeAdapter

from stun_exp.state.artifacts import JOURNAL
from stun_exp.state.costs import StageCost
from stun_exp.state.ownership import check_free, is_odd
from stun_exp.utils.files import PARTIAL, not_written, write_file

MOST_NAMED = 8
"""Differences that are told; a run of another version of this package has hundreds."""
T = TypeVar("T")
log = logging.getLogger(__name__)


class Journal:
    """The records in a run's folder."""

    def __init__(self, out: Path, made_of: Mapping[str, Any], anew: bool, names: Iterable[str] = ()):
        """Goes on with the records that are there, or `anew` without; ValueError if they are of another run.

        `names` are the files that the run is going to write, by their names in the folder.
        """
        self.file = out / JOURNAL
        self._records, self._end = read_records(self.file, torn=anew)
        self.own = {name for record in self._records for name in record.get("writes", ())}
        if anew or not self._records:
            self._begin(made_of, names)
            return
        if differences := _differences(self._records[0]["made_of"], made_of):
            raise ValueError(
                f"hydra.run.dir={out} holds an interrupted run that differs: {'; '.join(differences)}; go on as it was "
                "begun, choose another folder, or pass resume=restart to throw away what it has done"
            )
        log.info("goes on with the interrupted run in %s", out)
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

    def add(self, stage: str, fingerprint: str, value: Any, cost: StageCost) -> None:
        """Records a stage's result, a dataclass, or one of several; what it speaks of must be on disk."""
        self._append({"stage": stage, "fingerprint": fingerprint, "cost": asdict(cost), "value": asdict(value)})

    def find(self, stage: str, fingerprint: str, kind: type[T]) -> "Recorded[T] | None":
        """What was last recorded of a stage of this fingerprint; None if nothing was."""
        found = self.find_all(stage, fingerprint, kind)
        return found[-1] if found else None

    def find_all(self, stage: str, fingerprint: str, kind: type[T]) -> "list[Recorded[T]]":
        """All that was recorded of a stage of this fingerprint, in its order."""
        of_stage = [record for record in self._records if record.get("stage") == stage]
        return [
            Recorded(TypeAdapter(kind).validate_python(record["value"]), StageCost(**record["cost"]))
            for record in of_stage
            if record["fingerprint"] == fingerprint
        ]

    def note_code(self, code: Mapping[str, str]) -> list[str]:
        """The modules and libraries that are not what they were when the run was last at work; records what they are.

        `code` is the digest, or the version, of each.
        """
        last = next((record["code"] for record in reversed(self._records) if "code" in record), None)
        if last == code:
            return []
        self._append({"code": dict(code)})
        return sorted(name for name in {*code, *last} if code.get(name) != last.get(name)) if last else []

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


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys([*old, *new])
    found = [f"{name}: {old.get(name)} -> {new.get(name)}" for name in names if old.get(name) != new.get(name)]
    more = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
    return found[:MOST_NAMED] + more


class Recorded(NamedTuple, Generic[T]):
    """A stage's result, and what it cost."""

    value: T
    cost: StageCost


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


def own_files(out: Path) -> set[str]:
    """The files in a run's folder that runs have written there, by their journal."""
    records, _ = read_records(out / JOURNAL, torn=True)
    return {str(name) for record in records for name in record.get("writes", ())}


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
