"""Files that are whole or not there, and JSON that any reader takes."""

import errno
import json
import math
import os
from dataclasses import asdict
from math import inf, nan
from pathlib import Path

import pytest

from stun_exp.evaluation.records import Sample
from stun_exp.utils.json_files import with_numbers, write_json, write_json_lines


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.json"
    write_json(file, {"run": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"report\.json: could not be written \(No space left"):
        write_json(file, {"run": 2})
    assert json.loads(file.read_text()) == {"run": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_json_is_strict_and_reads_back(tmp_path: Path) -> None:
    """Perplexity after heavy pruning is really infinite, and JSON has no word for it."""
    report = {"name": "NaN", "metrics": {"a": {"value": inf, "stderr": None}}, "x": [nan, -inf, 0.1], "y": (1, True)}
    write_json(tmp_path / "report.json", report)
    samples = [Sample("t", "t", "m", 0, "h", value) for value in (inf, nan)]
    write_json_lines(tmp_path / "samples.jsonl", map(asdict, samples))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert content["metrics"]["a"]["value"] == "Infinity"
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse)["value"] for line in lines] == ["Infinity", "NaN"]
    assert all(math.isinf(float(text)) for text in ("Infinity", "-Infinity"))
    again = with_numbers(content)
    assert again["name"] == "NaN"
    assert again["metrics"] == report["metrics"]
    assert math.isnan(again["x"][0])
    assert again["x"][1:] == [-inf, 0.1]
    assert again["y"] == [1, True]
