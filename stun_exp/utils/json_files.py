"""Files that may be anybody's, read with care: none but regular ones are opened, JSON and its numbers are strict."""

import json
import os
from collections.abc import Iterable, Mapping
from errno import EINVAL
from math import isfinite
from pathlib import Path
from stat import S_ISREG
from typing import Any

from stun_exp.utils.files import write_file

NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
"""How a number is written that JSON has no name for, as text that float() reads."""
WORDS = frozenset({"name", "fingerprint", "choices", "settings", "model", "export", "warnings", "provenance"})
"""Of a report, where such text is text."""


def find(folder: Path, name: str) -> list[Path]:
    """All of a name in a folder, at any depth, links that lead nowhere among them; no link to a folder is followed."""
    return [Path(at, name) for at, folders, files in os.walk(folder) if name in (*folders, *files)]


def read_regular(file: Path) -> bytes:
    """The content of a file; OSError for what is none, such as a pipe, which would keep its reader waiting."""
    if not S_ISREG(file.stat().st_mode):
        raise OSError(EINVAL, "not a regular file", str(file))
    return file.read_bytes()


def read_json(file: Path) -> Any:
    """The content of a JSON file; ValueError if it is none, OSError if it cannot be read."""
    try:
        return json.loads(read_regular(file).decode())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def write_json(file: Path, content: Any) -> None:
    """Writes a file whole or not at all, numbers that are not finite as text; OSError that names it.

    `with_numbers` reads such text back.
    """
    write_file(file, [(json.dumps(strict(content), indent=1, allow_nan=False) + "\n").encode()])


def write_json_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a line of JSON for each row, whole or not at all; no file for none."""
    lines = [(json.dumps(strict(row), allow_nan=False) + "\n").encode() for row in rows]
    if lines:
        write_file(file, lines)


def strict(content: Any) -> Any:
    """The same as JSON can hold it: numbers that are not finite are text."""
    if isinstance(content, dict):
        return {key: strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [strict(value) for value in content]
    if isinstance(content, float) and not isfinite(content):
        return next(text for text, number in NOT_FINITE.items() if number == content or content != content)
    return content


def with_numbers(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report as it was before `strict`: what was measured is numbers again, and names and settings stay text."""
    return {key: value if key in WORDS else _numbers(value) for key, value in report.items()}


def _numbers(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _numbers(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_numbers(value) for value in content]
    return NOT_FINITE.get(content, content) if isinstance(content, str) else content
