"""What goes wrong with files between two starts, or during one: a clear error or a correct continuation."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stun_exp.checkpoint.shards import INDEX
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.moe.layers import MoELayer

Go = Callable[..., dict[str, Any]]
Content = Callable[[Path], dict[str, bytes]]


def flip_a_bit(file: Path) -> None:
    """In the last of its numbers."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off, Path.unlink, Path.touch])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_damaged_shard_is_made_again_and_only_that(
    interrupted: Path,
    undisturbed: Path,
    go: Go,
    prunings: list[int],
    content: Content,
    damage: Callable[[Path], None],
    layer: int,
) -> None:
    """The trap: a layer that is written again after others were must not move them, nor be fed by the damaged one."""
    damage(interrupted / f"checkpoint/model-{layer + 1:05d}-of-00004.safetensors")
    report = go()
    lost = damage is not Path.touch
    assert prunings == ([layer] if lost else []) + [2]
    assert content(interrupted / "checkpoint") == content(undisturbed)
    assert any(f"layer {layer} was finished" in warning for warning in report["warnings"]) == lost


def test_a_folder_without_its_checkpoint_is_pruned_again_by_the_same_plan(
    interrupted: Path, undisturbed: Path, go: Go, prunings: list[int], content: Content
) -> None:
    shutil.rmtree(interrupted / "checkpoint")
    report = go()
    assert prunings == [0, 1, 2]
    assert report["cost"]["experts"]["forward_passes"] == 1  # of the first start
    assert content(interrupted / "checkpoint") == content(undisturbed)


def test_a_disk_that_is_full_again_and_again_loses_nothing(
    go: Go, undisturbed: Path, prunings: list[int], content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start finds a little more room than the one before."""
    original, calls, errors = os.fsync, list[int](), list[str]()

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3 + len(errors):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    prunings.clear()
    while not (tmp_path / "out/report.json").exists():
        calls.clear()
        try:
            go()
        except OSError as error:
            errors.append(str(error))
        assert not list((tmp_path / "out").rglob("*.partial"))
    assert len(errors) > 5
    assert all(": could not be written (No space left on device); free some space" in error for error in errors)
    assert len(prunings) <= 3 + len(errors)
    assert content(tmp_path / "out/checkpoint") == content(undisturbed)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A disk of its own at `folder`; skips where this user may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def test_a_disk_that_runs_full(
    go: Go, undisturbed: Path, prunings: list[int], content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may fill the disk after the estimate: a real one here, that takes two layers and no third."""
    prunings.clear()
    with small_disk(tmp_path / "disk", "100k"):
        with pytest.raises(OSError, match=r"checkpoint: the checkpoint needs up to 0\.1 MB and 0\.\d MB are free"):
            go(out=tmp_path / "disk/out")
        with monkeypatch.context() as blind:
            blind.setattr("stun_exp.checkpoint.writer.disk_usage", lambda path: SimpleNamespace(free=1e9))
            with pytest.raises(OSError, match=r"could not be written \(No space left on device\)"):
                go(out=tmp_path / "disk/out")
        done = len(prunings)
        assert done > 1
        remount(tmp_path / "disk", "size=2m")
        go(out=tmp_path / "disk/out")
        assert prunings == [*range(done), *range(done - 1, 3)]
        assert content(tmp_path / "disk/out/checkpoint") == content(undisturbed)


def test_a_disk_that_can_only_be_read(go: Go, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m"):
        (tmp_path / "disk/out").mkdir()
        remount(tmp_path / "disk", "ro")
        with pytest.raises(OSError, match=r"disk/out: cannot be written \(Read-only file system\); choose another"):
            go(out=tmp_path / "disk/out")


def test_a_folder_that_can_no_longer_be_written(
    interrupted: Path, undisturbed: Path, go: Go, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a disk that the system mounts anew, for reading, when it fails."""
    with monkeypatch.context() as broken:

        def read_only(*args: Any) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        broken.setattr(os, "replace", read_only)
        with pytest.raises(OSError, match=r"could not be written \(Read-only file system\)"):
            go()
    go()
    assert content(interrupted / "checkpoint") == content(undisturbed)


# --- the source


@pytest.fixture
def source(mixtral_copy: Path) -> Path:
    """A copy of the model in two shards, with an index."""
    tensors = load_file(mixtral_copy / "model.safetensors")
    names = {key: f"model-0000{1 + ('layers' in key)}-of-00002.safetensors" for key in tensors}
    for name in set(names.values()):
        save_file({k: v for k, v in tensors.items() if names[k] == name}, mixtral_copy / name, {"format": "pt"})
    (mixtral_copy / INDEX).write_text(json.dumps({"weight_map": names}))
    (mixtral_copy / "model.safetensors").unlink()
    return mixtral_copy


@pytest.fixture
def go_from(go: Go, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], dict[str, Any]]:
    """Goes on with a run on the source, which was interrupted after two layers."""
    original = CheckpointWriter.write_layer

    def interrupt(self: CheckpointWriter, layer: MoELayer) -> Any:
        if layer.index == 2:
            raise KeyboardInterrupt
        return original(self, layer)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(CheckpointWriter, "write_layer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            go(f"model.path={source}")
    return lambda: go(f"model.path={source}")


SHARD = "model-00002-of-00002.safetensors"


def test_a_source_that_is_truncated_is_named(go_from: Go, source: Path) -> None:
    cut_off(source / SHARD)
    with pytest.raises(ValueError, match=f"{SHARD}: truncated"):
        go_from()


def test_a_source_whose_index_names_a_missing_file(go_from: Go, source: Path, prunings: list[int]) -> None:
    """When the file is there again the run goes on."""
    (source / SHARD).rename(source / "gone")
    with pytest.raises(FileNotFoundError, match=f"{SHARD}: named by {INDEX} but not there"):
        go_from()
    (source / "gone").rename(source / SHARD)
    prunings.clear()
    go_from()
    assert prunings == [2]


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_another_source_is_refused(go_from: Go, source: Path, name: str) -> None:
    (source / name).write_text((source / name).read_text() + "\n")
    with pytest.raises(ValueError, match=rf"interrupted run that differs: checksum of {name}: \w+ -> \w+; go on as"):
        go_from()


def test_a_flipped_bit_in_the_source_is_seen_if_it_makes_a_number_none(go_from: Go, source: Path) -> None:
    """Safetensors has no checksum: any other number goes unseen, as with every reader of the format."""
    tensors, written = load_file(source / SHARD), (source / SHARD).stat().st_mtime_ns
    key = "model.layers.2.block_sparse_moe.experts.0.w1.weight"
    tensors[key].view(torch.int32)[0, 0] |= 0xFF << 23  # its exponent's
    save_file(tensors, source / SHARD, {"format": "pt"})
    os.utime(source / SHARD, ns=(written, written))  # a disk that forgets writes no time
    with pytest.raises(ValueError, match=r"layer 2's .* holds NaN or infinity .* the checkpoint is damaged"):
        go_from()


def test_a_source_that_was_written_again_is_another(go_from: Go, source: Path) -> None:
    """Weights trained further, in a file of the same size."""
    tensors = load_file(source / SHARD)
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, source / SHARD, {"format": "pt"})
    with pytest.raises(ValueError, match=f"checksum of {SHARD}"):
        go_from()
