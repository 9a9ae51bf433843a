"""Rows are read alike from every kind of file, and what is damaged is named with its place."""

from pathlib import Path

import pytest
from row_files import write_rows

from stun_exp.calibration.text import ROW_ENDINGS, files_in, rows_of

ROWS = [{"text": "one\u2028line", "ids": [3]}, {"text": "two", "ids": [1, 2]}]


@pytest.mark.parametrize("ending", ROW_ENDINGS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    file = write_rows(tmp_path / f"a{ending}", ROWS)
    found = list(rows_of(file, "calibration.path=a"))
    assert [row["text"] for _, row in found] == ["one\u2028line", "two"]
    assert found[1][1]["ids"] == [1, 2]
    assert found[1][0] == f"calibration.path=a, {'row' if ending == '.parquet' else 'line'} 2"


@pytest.mark.parametrize("ending", [".jsonl.gz", ".parquet"])
def test_a_file_that_was_cut_off_is_named(tmp_path: Path, ending: str) -> None:
    """As a download that broke off leaves it: gzip gives what came before without a word."""
    rows = [{"text": f"{i} {i * i}"} for i in range(5000)]
    file = write_rows(tmp_path / f"a{ending}", rows)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"calibration.path=a: not (whole as gzip|a whole Parquet file) .*again"):
        list(rows_of(file, "calibration.path=a"))


def test_a_file_of_another_kind_than_its_ending_says_is_named(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "a.parquet"):
        (tmp_path / name).write_text('{"text": "one"}\n')
        with pytest.raises(ValueError, match=f"path={name}: not .* again"):
            list(rows_of(tmp_path / name, f"path={name}"))


def test_the_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n{"text": "\xe9"}\n')
    with pytest.raises(ValueError, match=r"path=a, line 2: not UTF-8 \(byte 0xe9 at 10\); save it as UTF-8"):
        list(rows_of(tmp_path / "a.jsonl", "path=a"))


def test_the_files_of_a_folder_are_those_with_the_endings_in_order(tmp_path: Path) -> None:
    """Hidden folders hold what tools leave, such as a hub client's .cache."""
    for name in ("b.jsonl", "a/c.txt", "README.md", ".cache/d.jsonl", "a/.e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert files_in(tmp_path, (".txt", ".jsonl")) == [tmp_path / "a/c.txt", tmp_path / "b.jsonl"]
