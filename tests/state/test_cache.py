"""The cache: values come back as they were, under their own key alone, and a damaged one is noticed."""

import os
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from stun_exp.state.cache import CacheFolder, NoCache, Store

VALUE = {"sum_CC": torch.randn(3, 3, dtype=torch.float64), "num_tokens": 7, "list": [1.5, None, "x"]}


def store(folder: Path, said: list[str] | None = None, max_entry_gb: float = 1.0) -> Store:
    told = said if said is not None else []
    return Store(CacheFolder(path=str(folder), max_entry_gb=max_entry_gb), told.append)


def files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def test_a_value_comes_back_bit_for_bit(tmp_path: Path) -> None:
    store(tmp_path).add("statistics", {"layer": 1, "of": "a"}, VALUE)
    found = store(tmp_path).find("statistics", {"of": "a", "layer": 1})
    assert torch.equal(found["sum_CC"], VALUE["sum_CC"])
    assert (found["num_tokens"], found["list"]) == (7, [1.5, None, "x"])


def test_another_key_and_another_kind_find_nothing(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.add("statistics", {"layer": 1}, VALUE)
    assert kept.holds("statistics", {"layer": 1})
    assert kept.find("statistics", {"layer": 2}) is None
    assert kept.find("evaluations", {"layer": 1}) is None


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_who_may_read_an_entry_is_for_the_umask_to_say(tmp_path: Path, umask: int, mode: int) -> None:
    """A group could not share a cache: entries were for their owner alone."""
    before = os.umask(umask)
    try:
        store(tmp_path / "cache").add("statistics", {"layer": 1}, VALUE)
    finally:
        os.umask(before)
    (file,) = files(tmp_path)
    assert file.stat().st_mode & 0o777 == mode
    assert file.parent.stat().st_mode & 0o777 == mode | (mode & 0o444) >> 2


def test_an_entry_that_cannot_be_read_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    kept = store(tmp_path, said)
    kept.add("statistics", {"layer": 1}, VALUE)

    def refused(file: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert kept.find("statistics", {"layer": 1}) is None
    assert f"cache.path={tmp_path}: " in said[0]
    assert "cannot be read (Permission denied); computed again" in said[0]


def test_an_entry_that_holds_something_else_is_computed_again(tmp_path: Path) -> None:
    """Whole, and its checksum right, but nothing that this program wrote."""
    said: list[str] = []
    kept = store(tmp_path, said)
    kept.add("statistics", {"layer": 1}, VALUE)
    (file,) = files(tmp_path)
    file.write_bytes(sha256(b"else").hexdigest().encode() + b"\nelse")
    assert kept.find("statistics", {"layer": 1}) is None
    assert "cannot be read" in said[0]


@pytest.mark.parametrize("place", [0, 70, -1])
def test_a_damaged_value_is_told_dropped_and_replaced(tmp_path: Path, place: int) -> None:
    said: list[str] = []
    kept = store(tmp_path, said)
    kept.add("statistics", {"layer": 1}, VALUE)
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    assert kept.find("statistics", {"layer": 1}) is None
    assert said == [f"{file}: damaged; dropped, and computed again"]
    assert not files(tmp_path)
    kept.add("statistics", {"layer": 1}, VALUE)
    assert torch.equal(kept.find("statistics", {"layer": 1})["sum_CC"], VALUE["sum_CC"])


def test_a_truncated_value_is_damaged(tmp_path: Path) -> None:
    said: list[str] = []
    kept = store(tmp_path, said)
    kept.add("statistics", {"layer": 1}, VALUE)
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes()[:-5])
    assert not kept.holds("statistics", {"layer": 1})
    assert len(said) == 1


def test_what_is_too_large_or_cannot_be_written_is_told_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with monkeypatch.context() as context:
        context.setattr(torch, "save", lambda *_: pytest.fail("it was put together in memory all the same"))
        store(tmp_path, said, max_entry_gb=7e-8).add("statistics", {"layer": 1}, {"nested": [VALUE]})
    (tmp_path / "file").write_text("")
    store(tmp_path / "file", said).add("statistics", {"layer": 1}, VALUE)
    assert "cache.max_entry_gb=7e-08: statistics of" in said[0]
    assert "computes it again" in said[1]
    assert files(tmp_path) == [tmp_path / "file"]


def test_no_cache_keeps_nothing() -> None:
    nothing = Store(NoCache(), pytest.fail)
    nothing.add("statistics", {}, VALUE)
    assert nothing.find("statistics", {}) is None


def _write(folder: str) -> int:
    kept = store(Path(folder))
    for _ in range(20):
        kept.add("statistics", {"layer": 1}, {"x": torch.arange(10_000)})
        assert torch.equal(kept.find("statistics", {"layer": 1})["x"], torch.arange(10_000))
    return 1


@pytest.mark.slow
def test_writers_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    """A temporary name that two writers share would let one rename what the other is half through."""
    from multiprocessing import get_context

    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        assert sum(pool.map(_write, [str(tmp_path)] * 3)) == 3
    assert len(files(tmp_path)) == 1
