"""Data sets read from this machine: in the hub's layout, in a folder, or as the datasets library has cached them.

What is in a folder is read anew each time, past the library's cache: that goes by names and times, which files of other
content may share.
"""

import gzip
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stun_exp.data.hub import asked_once, why_unreachable
from stun_exp.data.sets import DataSet

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz")
"""Of files of data."""


class NotHere(LookupError):
    """A data set that is neither on this machine nor to be had; the message says why, if the hub answers."""


def read_set(data_set: DataSet, folders: Sequence[Path], alone: bool, **options: Any) -> "DatasetDict":
    """The splits of a data set, from the first of some folders that has it, or as the datasets library has them.

    Args:
        data_set: Which.
        folders: Where it may lie.
        alone: Whether no other part of it is asked for: files that lie in a folder without a name for their part are
            then taken to be this one.
        options: More that its loader is to be told, such as which files to read.

    Raises:
        NotHere: It is not on this machine.
        ValueError: A file of it cannot be read.
    """
    from datasets import load_dataset

    for folder in folders:
        with _named(folder):
            found = _part(folder, data_set.config, alone)
        if found is None:
            continue
        with _named(found[0]), TemporaryDirectory() as scratch:
            return load_dataset(*map(_text, found), cache_dir=scratch, keep_in_memory=True, **options)
    try:
        with asked_once():
            return load_dataset(data_set.name, data_set.config, **options)
    except Exception as error:  # any of a dozen classes of as many libraries
        raise NotHere("" if why_unreachable() else _said(error)) from error


@contextmanager
def read_rows(file: Path) -> "Iterator[Dataset]":
    """The rows of one file, which lie on disk for as long as the block; ValueError if it cannot be read."""
    from datasets import load_dataset

    kind = "parquet" if file.suffix == ".parquet" else "json"
    with TemporaryDirectory() as scratch:
        with _named(file):
            rows = load_dataset(kind, data_files={"train": str(file)}, split="train", cache_dir=scratch)
        yield rows


def files_in(folder: Path) -> list[Path]:
    """The files of data in a folder and in those within it."""
    return sorted(file for file in folder.rglob("*") if file.name.endswith(ENDINGS) and file.is_file())


def _part(folder: Path, config: str | None, alone: bool) -> tuple[Path, str | None] | None:
    """The folder and the name by which a part of a data set is read; None if it is not there."""
    from datasets import get_dataset_config_names

    if not files_in(folder):
        return None
    names = get_dataset_config_names(str(folder))
    if config is None or (config in names and names != ["default"]):
        return folder, config
    if (folder / config).is_dir() and files_in(folder / config):
        return folder / config, None
    return (folder, None) if names == ["default"] and alone else None


@contextmanager
def _named(place: Path) -> Iterator[None]:
    """ValueError that names the file, where the library cannot read one in the block; NotHere if each can be read."""
    library = logging.getLogger("datasets")
    level = library.level
    library.setLevel(logging.CRITICAL)  # it tells of a file what is told below
    try:
        yield
    except Exception as error:  # of pyarrow, zlib, json and the library itself
        broken = next(_broken(place), None)
        if broken is None:
            raise NotHere(f"{place} has not all of it ({_said(error)})") from error
        raise ValueError(
            f"{broken[0]}: cannot be read as data ({broken[1]}); fetch it again (stun fetch), or copy it once more"
        ) from error
    finally:
        library.setLevel(level)


def _broken(place: Path) -> Iterator[tuple[Path, str]]:
    """Each file at a place that cannot be read by itself, and why."""
    for file in files_in(place) if place.is_dir() else [place]:
        try:
            _read_through(file)
        except Exception as error:
            yield file, _said(error).replace(f" '{file}'", "")


def _read_through(file: Path) -> None:
    if file.suffix == ".parquet":
        from pyarrow import parquet

        parquet.read_table(file)
        return
    lines = ".jsonl" in file.name or _is_lines(file)
    with _opened(file) as content:
        for text in content if lines else [content.read()]:
            if text.strip():
                json.loads(text)


def _is_lines(file: Path) -> bool:
    """Whether a file that ends in .json has an object on each line, as C4's have."""
    with _opened(file) as content:
        try:
            return isinstance(json.loads(content.readline()), dict)
        except ValueError:
            return False


def _opened(file: Path) -> Any:
    return gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8")


def _text(value: Path | str | None) -> str | None:
    return None if value is None else str(value)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
