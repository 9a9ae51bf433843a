"""Reports found on disk, and those that are passed over."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stun_exp.report.data.read import read_runs
from stun_exp.state.artifacts import SCHEMA

Make = Callable[..., dict[str, Any]]


def write(folder: Path, content: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_runs_at_any_depth_in_the_order_of_their_numbers(make_report: Make, tmp_path: Path) -> None:
    """Job 10 comes after job 2; an override with a slash makes a folder deeper; a run that failed has no report."""
    for name in ("10", "2", "a=x/y", "0"):
        write(tmp_path / "sweep" / name, make_report(name))
    (tmp_path / "sweep" / "1").mkdir()
    found = read_runs([tmp_path])
    assert [run.report["name"] for run in found.runs] == ["0", "2", "10", "a=x/y"]
    assert found.runs[0].folder == tmp_path / "sweep" / "0"
    assert found.skipped == []


def test_a_run_s_own_folder_and_a_list_of_reports(make_report: Make, tmp_path: Path) -> None:
    run = write(tmp_path / "run", make_report("one"))
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps([make_report("two"), make_report("three")]))
    found = read_runs([run, kept])
    assert [(r.report["name"], r.where, r.folder) for r in found.runs] == [
        ("one", str(run), run),
        ("two", f"{kept}[0]", None),
        ("three", f"{kept}[1]", None),
    ]


def test_a_folder_inside_another_is_read_once(make_report: Make, tmp_path: Path) -> None:
    run = write(tmp_path / "sweep" / "0", make_report())
    assert len(read_runs([tmp_path, run, tmp_path / "sweep" / ".." / "sweep"]).runs) == 1


def test_what_cannot_be_read_is_named_and_skipped(make_report: Make, tmp_path: Path) -> None:
    """An older schema would be misread in silence; half a file is no report."""
    write(tmp_path / "a", make_report() | {"schema": SCHEMA - 1})
    write(tmp_path / "b", {key: value for key, value in make_report().items() if key != "schema"})
    write(tmp_path / "c", json.dumps(make_report())[:100])
    write(tmp_path / "d", {"schema": SCHEMA, "name": "x"})
    write(tmp_path / "e", make_report("good"))
    (write(tmp_path / "f", "") / "report.json").write_bytes(b"\xff\xfe\xff")
    found = read_runs([tmp_path])
    assert [run.report["name"] for run in found.runs] == ["good"]
    what = dict(line.removeprefix(f"{tmp_path}/").split(": ", 1) for line in found.skipped)
    assert what["a"] == f"a report of schema {SCHEMA - 1}, and this version reads schema {SCHEMA}; run it again"
    assert what["b"].startswith("a report before schemas were numbered")
    assert what["c/report.json"].startswith("cannot be read (")
    assert what["d"].startswith("damaged, seed: missing, and ")
    assert what["f/report.json"].startswith("cannot be read (")


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no report to read in"):
        read_runs([tmp_path])
    write(tmp_path / "old", {"name": "old"})
    with pytest.raises(ValueError, match=r"no report to read in .*\n  .*old: a report before schemas were numbered"):
        read_runs([tmp_path])
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or file"):
        read_runs([tmp_path / "nowhere"])
