"""Models are told apart by what is in them."""

import json
import os
from pathlib import Path
from shutil import copytree

import pytest
from edited_weights import edited
from safetensors.torch import load_file

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.shards import SINGLE
from stun_exp.state import identity as module
from stun_exp.state.cache import CacheFolder, NoCache, Store
from stun_exp.state.identity import Digests
from stun_exp.utils.files import digest_of

NOTHING_KEPT = Store(NoCache(), pytest.fail)


def identity(folder: Path, store: Store = NOTHING_KEPT) -> dict[str, str]:
    return Checkpoint(folder, None).identity(Digests(store).of)


def test_two_models_of_one_size_and_time_are_two(mixtral_copy: Path, tmp_path: Path) -> None:
    """As after tar, in an image, or after cp -p: it was by size and time that they were told apart."""
    other = Path(copytree(mixtral_copy, tmp_path / "other"))
    assert identity(mixtral_copy) == identity(other)
    edited(other, lambda tensors: tensors["lm_head.weight"].mul_(2))
    first, second = (folder / SINGLE for folder in (mixtral_copy, other))
    assert (first.stat().st_size, first.stat().st_mtime_ns) == (second.stat().st_size, second.stat().st_mtime_ns)
    assert identity(mixtral_copy) != identity(other)


def test_weights_in_a_subfolder_count(mixtral_copy: Path) -> None:
    """Those that the index names there."""
    (mixtral_copy / "deep").mkdir()
    (mixtral_copy / SINGLE).rename(mixtral_copy / "deep" / "w.safetensors")
    keys = load_file(mixtral_copy / "deep" / "w.safetensors")
    index = {"weight_map": dict.fromkeys(keys, "deep/w.safetensors")}
    (mixtral_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "deep/w.safetensors" in identity(mixtral_copy)


def test_a_file_is_read_once_for_as_long_as_it_is_what_it_was(
    mixtral_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written to, replaced, or with its times put back, it is read again."""
    monkeypatch.setattr(module, "SETTLED", -1e9)  # as if all had been left alone for long
    store, read = Store(CacheFolder(path=str(tmp_path / "cache"), max_entry_gb=1.0), pytest.fail), list[Path]()
    monkeypatch.setattr(module, "digest_of", lambda file: (read.append(file), digest_of(file))[1])
    weights = mixtral_copy / SINGLE
    first = Digests(store).of(weights)
    assert Digests(store).of(weights) == first == digest_of(weights)
    assert read == [weights]
    edited(mixtral_copy, lambda tensors: tensors["lm_head.weight"].mul_(2))
    second = Digests(store).of(weights)
    assert second == digest_of(weights) != first
    about = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert Digests(store).of(weights) not in (first, second)


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written again within a tick of the disk's clock it would look the same."""
    store = Store(CacheFolder(path=str(tmp_path / "cache"), max_entry_gb=1.0), pytest.fail)
    (tmp_path / "x").write_text("1")
    Digests(store).of(tmp_path / "x")
    assert not (tmp_path / "cache").exists()
