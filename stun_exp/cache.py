"""What was computed once, kept under all that it depends on: runs that share a cache do no work twice."""

import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from stun_exp.component import Component

LIBRARIES = ("torch", "transformers")


class Damaged(Exception):
    """An entry is not as it was written."""


class Cache(Protocol):
    """Where values are kept."""

    def find(self, what: str, name: str) -> bytes | None:
        """The value of that name, None if there is none; Damaged if it is not as it was written."""
        ...

    def check_size(self, what: str, num_bytes: int) -> None:
        """ValueError if a value of so many bytes is too large to be kept."""
        ...

    def add(self, what: str, name: str, value: bytes) -> None:
        """Keeps a value; OSError if it cannot be written."""
        ...


class NoCache(Component):
    """Keeps nothing."""

    def find(self, what: str, name: str) -> bytes | None:
        return None

    def check_size(self, what: str, num_bytes: int) -> None:
        return None

    def add(self, what: str, name: str, value: bytes) -> None:
        return None


class CacheFolder(Component):
    """A folder with a file for each value, which begins with the value's checksum.

    Any number of processes may write to it: a file is there whole or not at all, and two of one name are equal. It may
    be deleted at any time.
    """

    path: str
    max_entry_gb: float = Field(gt=0)
    """A larger value is not kept, and computed again by each run that needs it."""

    def find(self, what: str, name: str) -> bytes | None:
        file = self._file(what, name)
        try:
            checksum, _, value = file.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        if sha256(value).hexdigest().encode() != checksum:
            file.unlink(missing_ok=True)
            raise Damaged(f"{file}: damaged")
        return value

    def check_size(self, what: str, num_bytes: int) -> None:
        if num_bytes > self.max_entry_gb * 1e9:
            raise ValueError(
                f"cache.max_entry_gb={self.max_entry_gb:g}: {what} of {num_bytes / 1e9:.2f} GB is not kept"
            )

    def add(self, what: str, name: str, value: bytes) -> None:
        file = self._file(what, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".partial", delete=False) as partial:
            try:
                partial.write(sha256(value).hexdigest().encode() + b"\n" + value)
                partial.close()
                os.replace(partial.name, file)
            except OSError:
                with suppress(OSError):
                    os.unlink(partial.name)
                raise

    def _file(self, what: str, name: str) -> Path:
        return Path(self.path).expanduser() / what / name[:2] / name


@dataclass(frozen=True)
class Store:
    """A cache as one run sees it: values are plain data and tensors, keys say all that they depend on."""

    cache: Cache
    warn: Callable[[str], None]

    def find(self, what: str, key: Mapping[str, Any]) -> Any:
        """The value kept under a key, None if there is none; a damaged one is dropped with a warning."""
        import torch

        value = self._found(what, key)
        return None if value is None else torch.load(io.BytesIO(value), weights_only=True)

    def holds(self, what: str, key: Mapping[str, Any]) -> bool:
        """Whether `find` gives a value."""
        return self._found(what, key) is not None

    def _found(self, what: str, key: Mapping[str, Any]) -> bytes | None:
        try:
            return self.cache.find(what, _name(key))
        except Damaged as error:
            self.warn(f"{error}; dropped, and computed again")
            return None

    def add(self, what: str, key: Mapping[str, Any], value: Any) -> None:
        """Keeps a value, or warns why that could not be."""
        import torch

        try:
            self.cache.check_size(what, _num_bytes(value))  # before it is put together in memory
            buffer = io.BytesIO()
            torch.save(value, buffer)
            self.cache.add(what, _name(key), buffer.getvalue())
        except (OSError, ValueError) as error:
            self.warn(f"{error}; each run computes it again")


def _num_bytes(value: Any) -> int:
    """Of all tensors in a value."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return getattr(value, "nbytes", 0) + sum(map(_num_bytes, inside))


def _name(key: Mapping[str, Any]) -> str:
    return sha256(json.dumps({**versions(), "key": key}, sort_keys=True).encode()).hexdigest()


@cache
def versions() -> dict[str, str]:
    """Of this package's code, and of the libraries that can move a bit of what it computes."""
    return {"code": code_version(), **{name: version(name) for name in LIBRARIES}}


def code_version() -> str:
    """The sha256 of this package's code: what other code computed is not taken for what this would."""
    digest = sha256()
    package = Path(__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    return digest.hexdigest()
