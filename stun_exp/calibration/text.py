"""Files of calibration text, read with errors that name the line."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stun_exp.utils.paths import expanded, is_file


def text_file(path: str, *endings: str) -> str:
    """`path`, where a file of text is; ValueError if there is none, or if it ends otherwise."""
    file = expanded(path)
    if not is_file(file):
        raise ValueError("no such file")
    if file.suffix not in endings:
        raise ValueError(f"must end in {' or '.join(endings)}")
    return path


def text_of(file: Path, path: str) -> str:
    """The text in a file; ValueError that says where it is not UTF-8."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"calibration.path={path}: not UTF-8 (byte 0x{content[error.start]:02x} at {error.start}, in line {line}); "
            "save it as UTF-8"
        ) from error


def checked_text(text: str, where: str) -> str:
    """The same text; ValueError for half of a character, which JSON can hold and no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: not text (half of a character, at {error.start})") from error
    return text


def json_rows(file: Path, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The lines of a .jsonl file, each behind what an error calls it; one that is no object has no fields."""
    # Not splitlines: JSON may hold other line separators as they are, U+2028 for one.
    for number, line in enumerate(text_of(file, path).split("\n"), 1):
        where = f"calibration.path={path}, line {number}"
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error})") from error
        if line.strip():
            yield where, row if isinstance(row, dict) else {}


def token_ids(row: Mapping[str, Any], key: str, where: str, tokenizer: Any) -> list[int]:
    """The tokens in a field; ValueError if they are none of the tokenizer's."""
    if not all(type(i) is int and 0 <= i < len(tokenizer) for i in row[key]):  # true and false are integers too
        raise ValueError(f"{where}: `{key}` must be integers from 0 to {len(tokenizer) - 1}")
    return list(row[key])
