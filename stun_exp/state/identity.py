"""What tells one checkpoint from another: the content of its files."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stun_exp.state.cache import Store
from stun_exp.utils.files import digest_of

Digest = Callable[[Path], str]
"""The sha256 of a file's bytes."""
SETTLED = 2.0
"""Seconds that a file must have been left alone for its digest to be remembered: clocks of some disks tick that slowly,
and what is written within a tick of the first look would look the same at the second."""


@dataclass
class Digests:
    """The sha256 of files, each read once for as long as it is what it was.

    All bytes count: names, sizes and times are the same for two models that were copied with their times. To read them
    takes as long as to read the file, so what they came to is kept under the file's path, size, times and inode, which
    no way of writing to a file, or of putting another in its place, leaves as they are.
    """

    store: Store
    _known: dict[Path, str] = field(default_factory=dict)

    def of(self, file: Path) -> str:
        if file not in self._known:
            self._known[file] = self._looked_up(file)
        return self._known[file]

    def _looked_up(self, file: Path) -> str:
        key = _as_it_lies(file)
        found = self.store.find("digests", key)
        if isinstance(found, str):
            return found
        digest = digest_of(file)
        if digest is None:
            raise FileNotFoundError(f"{file}: was there and is gone; start the run again")
        if _as_it_lies(file) == key and time.time_ns() - max(key["mtime"], key["ctime"]) > SETTLED * 1e9:
            self.store.add("digests", key, digest)
        return digest


def _as_it_lies(file: Path) -> dict[str, Any]:
    about = file.stat()
    return {
        "path": str(file.resolve()),
        "size": about.st_size,
        "mtime": about.st_mtime_ns,
        "ctime": about.st_ctime_ns,
        "inode": about.st_ino,
    }
