"""Files of calibration text, read row by row, with errors that name the row."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stun_exp.utils.paths import expanded, is_file, is_folder

ROW_ENDINGS = (".jsonl", ".jsonl.gz", ".json.gz", ".parquet")
"""Of files that `rows_of` reads: a JSON object on each line, compressed or not, or a table."""
TEXT_ENDINGS = (".txt", *ROW_ENDINGS)
Row = tuple[str, Mapping[str, Any]]
"""What an error calls a row, and its fields."""


def text_file(path: str, *endings: str) -> str:
    """`path`, where a file of text is; ValueError if there is none, or if it ends otherwise."""
    file = expanded(path)
    if not is_file(file):
        raise ValueError("no such file")
    if not file.name.endswith(endings):
        raise ValueError(f"must end in {' or '.join(endings)}")
    return path


def files_in(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files with one of the endings in a folder and in the folders there, in the order of their names."""
    found = (file for file in folder.rglob("*") if file.name.endswith(endings) and is_file(file))
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def text_files(path: str, *endings: str) -> list[Path]:
    """The file, or the files in the folder, at `path`; ValueError if there are none."""
    place = expanded(path)
    if not is_folder(place):
        return [expanded(text_file(path, *endings))]
    if not (found := files_in(place, endings)):
        raise ValueError(f"no file in this folder ends in {' or '.join(endings)}")
    return found


def text_of(file: Path, name: str) -> str:
    """The text in a file; ValueError that says where it is not UTF-8. `name` is what an error calls the file."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name}: not UTF-8 (byte 0x{content[error.start]:02x} at {error.start}, in line {line}); save it as UTF-8"
        ) from error


def checked_text(text: str, where: str) -> str:
    """The same text; ValueError for half of a character, which JSON can hold and no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: not text (half of a character, at {error.start})") from error
    return text


def rows_of(file: Path, name: str) -> Iterator[Row]:
    """The rows of a file, one in memory after the other; one that is no object has no fields.

    Args:
        file: Ends as one of `ROW_ENDINGS`.
        name: What an error calls the file: the setting that names it, and its value.

    Raises:
        ValueError: The file is damaged, or no such file as its ending says.
    """
    return _table_rows(file, name) if file.suffix == ".parquet" else _json_rows(file, name)


def _json_rows(file: Path, name: str) -> Iterator[Row]:
    for number, line in enumerate(_lines(file, name), 1):
        where = f"{name}, line {number}"
        try:
            row = json.loads(line.decode("utf-8")) if line.strip() else None
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}: not UTF-8 (byte 0x{line[error.start]:02x} at {error.start}); save it as UTF-8"
            ) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error})") from error
        if line.strip():
            yield where, row if isinstance(row, dict) else {}


def _lines(file: Path, name: str) -> Iterator[bytes]:
    """The lines as bytes: as text, JSON may hold other line separators as they are, U+2028 for one."""
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
            yield from lines
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{name}: not whole as gzip ({error}); fetch or compress it again") from error


def _table_rows(file: Path, name: str) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}, row {number}", row
    except (ArrowException, OSError) as error:
        raise ValueError(f"{name}: not a whole Parquet file ({error!s:.200}); fetch or write it again") from error


def token_ids(row: Mapping[str, Any], key: str, where: str, tokenizer: Any) -> list[int]:
    """The tokens in a field; ValueError if they are none of the tokenizer's."""
    if not all(type(i) is int and 0 <= i < len(tokenizer) for i in row[key]):  # true and false are integers too
        raise ValueError(f"{where}: `{key}` must be integers from 0 to {len(tokenizer) - 1}")
    return list(row[key])
