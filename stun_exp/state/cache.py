"""What was computed once, kept under all that it depends on: runs that share a cache do no work twice."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

from pydantic import Field

from stun_exp.config.component import Component
from stun_exp.utils.paths import expanded


class Damaged(Exception):
    """An entry is not as it was written."""


class Cache(Protocol):
    """Where values are kept."""

    def find(self, what: str, name: str) -> bytes | None:
        """The value of that name, None if there is none.

        Damaged if it is not as it was written, OSError if it cannot be read.
        """
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
            if not file.is_file():
                return None
            checksum, _, value = file.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OSError(f"cache.path={self.path}: {file} cannot be read ({error.strerror or error})") from error
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
        from stun_exp.utils.files import write_file

        file = self._file(what, name)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Others may write the same value at the same time. Who else may read it is the umask's to say.
            write_file(file, [sha256(value).hexdigest().encode() + b"\n", value], by=token_hex(4))
        except OSError as error:
            raise OSError(f"cache.path={self.path}: {file} could not be written ({error.strerror or error})") from error

    def _file(self, what: str, name: str) -> Path:
        return expanded(self.path) / what / name[:2] / name


@dataclass(frozen=True)
class Store:
    """A cache as one run sees it: values are plain data and tensors, keys say all that they depend on.

    Among that is the code that computed them (`stun_exp.state.code.made_by`), but for what no code has a say in.
    """

    cache: Cache
    warn: Callable[[str], None]

    def find(self, what: str, key: Mapping[str, Any]) -> Any:
        """The value kept under a key, None if there is none; a damaged one is dropped with a warning."""
        import torch

        value = self._found(what, key)
        try:
            return None if value is None else torch.load(io.BytesIO(value), weights_only=True)
        except Exception as error:  # a pickle of something else can raise anything
            self.warn(f"the cache's {what} of {_name(key)[:8]} cannot be read ({error!r}); computed again")
            return None

    def holds(self, what: str, key: Mapping[str, Any]) -> bool:
        """Whether there is a value under a key."""
        return self._found(what, key) is not None

    def _found(self, what: str, key: Mapping[str, Any]) -> bytes | None:
        try:
            return self.cache.find(what, _name(key))
        except Damaged as error:
            self.warn(f"{error}; dropped, and computed again")
        except OSError as error:
            self.warn(f"{error}; computed again")
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
    return sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
