"""One process at a time in a folder."""

import errno
import json
import os
from pathlib import Path

import pytest

from stun_exp.state.lock import LOCK, run_lock


def test_a_folder_is_held_inside_the_block_alone(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        with pytest.raises(ValueError, match=f"hydra.run.dir={tmp_path}: process {os.getpid()} on .* is at work there"):
            with run_lock(tmp_path):
                pytest.fail("two in one folder")
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    with run_lock(tmp_path):
        pass


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), run_lock(tmp_path):
        raise KeyError
    with run_lock(tmp_path):
        pass


def test_a_holder_that_has_not_yet_said_who_it_is(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        (tmp_path / LOCK).write_text("")
        with pytest.raises(ValueError, match="another process is at work there"), run_lock(tmp_path):
            pass


def test_a_disk_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network disks have none."""

    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("stun_exp.state.lock.flock", no_locks)
    with pytest.raises(OSError, match=rf"{tmp_path}: cannot be locked \(No locks available\)"), run_lock(tmp_path):
        pass


def test_a_longer_name_of_before_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1, "host": "x" * 1000}) + "\n")
    with run_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("kind", ["text", "pipe", "link", "folder"])
def test_what_is_no_lock_stays_as_it_is(tmp_path: Path, kind: str) -> None:
    (tmp_path / "theirs").write_text("theirs")
    file = tmp_path / LOCK
    make = {"text": lambda: file.write_text("theirs"), "pipe": lambda: os.mkfifo(file), "folder": file.mkdir}
    make.get(kind, lambda: file.symlink_to("theirs"))()
    with pytest.raises(ValueError, match=rf"{file}: .* move it away, or choose another folder"), run_lock(tmp_path):
        pass
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert kind != "text" or file.read_text() == "theirs"
