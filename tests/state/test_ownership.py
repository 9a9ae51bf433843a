"""A run removes and writes over what runs have made, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from stun_exp.state.artifacts import JOURNAL
from stun_exp.state.journal import own_files
from stun_exp.state.ownership import remove

Runner = Callable[..., dict[str, Any]]


def everything(folder: Path) -> dict[str, bytes]:
    """All files in a folder by name, but for the lock, which each start writes anew."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "run.lock"
    }


def test_a_source_in_the_runs_own_folder_is_refused(
    runner: Runner, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its weights were removed before they were read."""
    source = Path(copytree(tiny_model("mixtral"), tmp_path / "run" / "checkpoint"))
    before = everything(source)
    for place in (source, tmp_path / "run" / "checkpoint" / ".." / "checkpoint"):
        with pytest.raises(ValueError, match=r"hydra\.run\.dir=.*lies in .*checkpoint, where the run is to write"):
            runner(f"model.path={place}")
    assert everything(source) == before


def test_a_source_inside_the_folder_to_write_is_refused(
    runner: Runner, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    source = Path(copytree(tiny_model("mixtral"), tmp_path / "run" / "checkpoint" / "deep"))
    before = everything(tmp_path / "run")
    with pytest.raises(ValueError, match=r"lies in .*checkpoint, where the run is to write"):
        runner(f"model.path={source}")
    assert everything(tmp_path / "run") == before


def test_the_models_own_folder_is_no_folder_of_a_run(
    runner: Runner, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    source = Path(copytree(tiny_model("mixtral"), tmp_path / "model"))
    with pytest.raises(ValueError, match=r"is the folder of model\.path"):
        runner(f"model.path={source}", out=source)


@pytest.mark.parametrize("name", ["checkpoint", "recovery"])
def test_a_link_in_the_place_of_a_folder_is_refused(runner: Runner, tmp_path: Path, name: str) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "file").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(theirs)
    with pytest.raises(ValueError, match=rf"{name}: is a link or a file"):
        runner()
    assert (theirs / "file").read_text() == "kept"


@pytest.mark.parametrize(
    "name",
    ["checkpoint/notes.md", "checkpoint/model.safetensors", "recovery/x", "config.yaml", "report.json", "plan.json"],
)
@pytest.mark.parametrize("resume", ["continue", "restart"])
def test_a_file_that_no_run_has_written_stays(runner: Runner, tmp_path: Path, name: str, resume: str) -> None:
    """Whatever it is called, and whether it lies where something is to be removed or written."""
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("theirs")
    with pytest.raises(ValueError, match=rf"{name}: the run is to write there, and no run has written that file"):
        runner(f"resume={resume}")
    assert file.read_text() == "theirs"


def test_a_file_that_was_put_beside_a_runs_own_stays(runner: Runner, tmp_path: Path) -> None:
    """When the checkpoint goes at the end of the run, and when the folder is used again."""
    runner()
    (tmp_path / "run" / "checkpoint").mkdir()
    (tmp_path / "run" / "checkpoint" / "theirs").write_text("kept")
    with pytest.raises(ValueError, match=r"checkpoint/theirs: the run is to write there"):
        runner("seed=1")
    assert (tmp_path / "run" / "checkpoint" / "theirs").read_text() == "kept"


def test_a_journal_that_is_none_is_not_removed(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / JOURNAL).write_text(json.dumps({"my": "diary"}) + "\n")
    with pytest.raises(ValueError, match=r"is no journal of a run as this version writes it; choose another folder"):
        runner("resume=restart")
    assert "diary" in (tmp_path / "run" / JOURNAL).read_text()


def test_all_that_a_run_leaves_is_its_own(runner: Runner, tmp_path: Path) -> None:
    """So that it can be made again there; a checkpoint that is not kept is gone with its folder."""
    runner()
    left = everything(tmp_path / "run").keys()
    assert left <= own_files(tmp_path / "run") | {JOURNAL}
    assert not (tmp_path / "run" / "checkpoint").exists()
    runner("seed=1")
    assert everything(tmp_path / "run").keys() == left


def test_files_of_earlier_plans_stay_a_runs_own(runner: Runner, tmp_path: Path) -> None:
    """A later run of another method does not write them, and one after that does."""
    runner("expert_pruner=stun", "expert_pruner.ratio=0.25")
    assert "clusters.json" in own_files(tmp_path / "run")
    runner("expert_pruner=random", "expert_pruner.ratio=0.25")
    runner("expert_pruner=stun", "expert_pruner.ratio=0.25")
    assert "clusters.json" in own_files(tmp_path / "run")


def test_what_was_half_written_goes_with_its_name(tmp_path: Path) -> None:
    """Also where the file itself is kept: it would count as a part of the checkpoint."""
    (tmp_path / "checkpoint").mkdir()
    for name in ("a", "a.partial", "b", "b.partial", "theirs"):
        (tmp_path / "checkpoint" / name).write_text("")
    remove(tmp_path, ["checkpoint/a", "checkpoint/b"], keep={"checkpoint/a"})
    assert {file.name for file in (tmp_path / "checkpoint").iterdir()} == {"a", "theirs"}


def test_nothing_outside_the_folder_is_removed(tmp_path: Path) -> None:
    """Whatever a journal may name."""
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "theirs").write_text("")
    (out / "link").symlink_to(tmp_path)
    remove(out, ["../theirs", str(tmp_path / "theirs"), "link/theirs"])
    assert (tmp_path / "theirs").exists()
