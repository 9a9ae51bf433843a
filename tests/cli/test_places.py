"""A folder that no run can be in is told in one line: before anything is loaded, or where it shows only later."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from stun_exp.cli.check import check, settings_of
from stun_exp.cli.places import folder_refusal

Mistakes = Callable[..., list[str]]


def file(here: Path) -> str:
    (here / "f").write_text("")
    return str(here / "f")


def in_a_file(here: Path) -> str:
    return f"{file(here)}/x/y"


def dangling(here: Path) -> str:
    (here / "l").symlink_to(here / "nothing")
    return str(here / "l")


def under_dangling(here: Path) -> str:
    return f"{dangling(here)}/x"


def round_a_loop(here: Path) -> str:
    (here / "o").symlink_to(here / "o")
    return str(here / "o")


def hydra_is_a_file(here: Path) -> str:
    (here / "d").mkdir()
    (here / "d/.hydra").write_text("")
    return str(here / "d")


BAD = {
    file: "is a file, not a folder; pass another folder",
    in_a_file: "/f is a file, not a folder; pass another folder",
    dangling: "/l is a link that leads nowhere; remove it, or pass another folder",
    under_dangling: "/l is a link that leads nowhere; remove it, or pass another folder",
    round_a_loop: "/o is a link that leads nowhere; remove it, or pass another folder",
    hydra_is_a_file: "/d/.hydra is a file, not a folder; pass another folder",
    lambda here: f"{here}/not/{'x' * 256}": "a name of 256 bytes is too long, a disk takes 255; pass a shorter one",
    lambda here: f"{here}/{'x/' * 2100}": "bytes is too long, the system takes 4096; pass a shorter one",
    lambda here: f"{here}/a\0b": "no path may have a NUL in it; pass another folder",
}


@pytest.mark.parametrize("make", BAD)
def test_a_folder_that_no_run_can_be_in(make: Callable[[Path], str], tmp_path: Path) -> None:
    assert folder_refusal(make(tmp_path)).endswith(BAD[make])


def test_a_folder_that_a_run_can_be_in(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for name in ("", "new", "new/newer", "there", "link", "link/x"):
        assert folder_refusal(str(tmp_path / name)) == ""


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda place, how: Path(place) != tmp_path)  # root may anything
    assert folder_refusal(f"{tmp_path}/new") == f"{tmp_path} may not be written to; pass another folder"


def test_it_is_told_with_all_other_mistakes(mistakes: Mistakes, tmp_path: Path) -> None:
    bad = file(tmp_path)
    why = f"{bad} is a file, not a folder; pass another folder"
    assert mistakes("sed=1", f"hydra.run.dir={bad}") == [
        "sed: no such setting; did you mean seed?",
        f"hydra.run.dir={bad}: {why}",
    ]
    assert mistakes("-m", "seed=0,1", f"hydra.sweep.dir={bad}") == [f"hydra.sweep.dir={bad}: {why}"]
    (tmp_path / "seed=1").write_text("")
    (said,) = mistakes("-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}")
    assert said.startswith(
        f"hydra.sweep.dir={tmp_path}: {tmp_path}/seed=1 is a file, not a folder; pass another folder"
    )


def test_the_other_kind_s_folder_does_not_matter(conf: Path, tmp_path: Path) -> None:
    assert check([f"hydra.sweep.dir={file(tmp_path)}", "model.path=x"], conf)
    assert check(["-m", "seed=0,1", f"hydra.run.dir={file(tmp_path)}", "model.path=x"], conf)


def test_a_command_that_writes_nothing_needs_no_folder(conf: Path, tmp_path: Path) -> None:
    assert settings_of([f"hydra.run.dir={file(tmp_path)}", "model.path=x"], conf)
    assert check(["--cfg", "job", f"hydra.run.dir={file(tmp_path)}"], conf)
