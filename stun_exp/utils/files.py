"""Single files: read with errors that name them, written whole or not at all, and never through a link to elsewhere."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json

PARTIAL = ".partial"
"""Ends the name of a file that is being written."""
LONGEST_NAME = 255
"""Bytes of a file's name in a model's folder; no disk in use takes more."""


def own_file(folder: Path, name: str, said_by: str) -> Path:
    """The file of that name in a folder; ValueError if the name, or a link, leads out of it.

    The links of the hub's cache lead out of a snapshot, to blobs that are the hub client's own: they are followed.
    """
    file = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{folder / said_by}: names {name!r:.200}, which is outside the folder; download it again")
    if "\0" in name or len(os.fsencode(name)) > LONGEST_NAME:
        raise ValueError(f"{folder / said_by}: names {name!r:.200}, and no file can be called so; download it again")
    if not is_inside(folder, file):
        raise ValueError(
            f"{file}: a link to {os.path.realpath(file)}, outside the model's folder; links are followed only within "
            "it and in the hub's cache: put the file itself there"
        )
    return file


def is_inside(folder: Path, file: Path) -> bool:
    """Whether a file, all links followed, lies in the folder or among the blobs of the hub's cache it belongs to."""
    # Not Path.resolve, which fails on links in a circle: those lead nowhere.
    home, real = (Path(os.path.realpath(path)) for path in (folder, file))
    blobs = [(home.parent.parent / "blobs").resolve()] if home.parent.name == "snapshots" else []
    return any(real.is_relative_to(place) for place in (home, *blobs))


def write_file(file: Path, content: Iterable[Any], by: str = "") -> str:
    """The sha256 of what is on disk, whole, when this returns; OSError that names the file if it could not be written.

    `by` as for `whole_file`.
    """
    digest = sha256()
    with whole_file(file, by) as handle, ThreadPoolExecutor(1) as beside:
        for piece in content:
            hashed = beside.submit(digest.update, piece)
            handle.write(piece)
            hashed.result()
    return digest.hexdigest()


@contextmanager
def whole_file(file: Path, by: str = "") -> Iterator[BinaryIO]:
    """A file to write to, which is on disk, whole, when the block ends; OSError that names it if that cannot be.

    It goes under a temporary name first: a crash, or a power cut, leaves the file as it was or as it will be. Where
    others may write the same file at the same time, that name has `by` in it.
    """
    partial = file.with_name(f"{file.name}{by and '.'}{by}{PARTIAL}")
    try:
        with partial.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, file)
    except BaseException as error:
        with suppress(OSError):  # what could not be written may well not be there, nor be removed
            partial.unlink()
        if isinstance(error, OSError):
            raise not_written(file, error) from error
        raise
    sync_folder(file.parent)


def not_written(file: Path, error: OSError) -> OSError:
    """What to tell of a file of a run that could not be written."""
    return OSError(
        f"{file}: could not be written ({error.strerror}); free some space, and the same command goes on "
        "from what is finished; or choose another folder"
    )


def sync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on disk, and not only the files behind them; OSError that names it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise not_written(folder, error) from error
    finally:
        os.close(descriptor)


def digest_of(file: Path) -> str | None:
    """The sha256 of a file; None if it is not there."""
    if not file.is_file():
        return None
    with file.open("rb") as handle:
        return file_digest(handle, "sha256").hexdigest()


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError that names the file if there is none."""
    try:
        content: Any = from_json(file.read_bytes())  # twice as fast as json
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must hold a JSON object, and holds a {type(content).__name__}; download it again")
    return content
