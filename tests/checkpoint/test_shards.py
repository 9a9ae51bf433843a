"""Shards and files that are on disk, whole, or not there."""

import errno
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from stun_exp.checkpoint.shards import Shard, write_shard
from stun_exp.utils.files import PARTIAL, digest_of, write_file

KINDS = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 bool"


def test_a_shard_is_what_safetensors_writes(tmp_path: Path) -> None:
    """Byte for byte, of every dtype; scalars, empty tensors, parts of others and names in any script."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(3, 4, 5, generator=generator)
    tensors = {kind: numbers[0].to(getattr(torch, kind)) for kind in KINDS.split()}
    tensors |= {"scalar": torch.tensor(3), "empty": torch.zeros(0, 3), "größe": numbers[1], "b": numbers[2]}
    tensors |= {"turned": numbers[0].mT, "row": numbers[1, 2:3], "odd": numbers[0, :, 0].bfloat16()[:3]}
    shard = write_shard(tmp_path / "x.safetensors", tensors)
    content = (tmp_path / "x.safetensors").read_bytes()
    assert content == save({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, {"format": "pt"})
    assert shard.name == "x.safetensors"
    assert shard.sha256 == sha256(content).hexdigest() == digest_of(tmp_path / "x.safetensors")
    assert shard.size == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert sorted(shard.keys) == sorted(tensors)
    back = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(back[key].double(), tensor.double()) for key, tensor in tensors.items())


def test_a_shard_without_tensors(tmp_path: Path) -> None:
    assert write_shard(tmp_path / "x.safetensors", {}) == Shard(
        "x.safetensors", digest_of(tmp_path / "x.safetensors") or "", 0, []
    )
    assert load_file(tmp_path / "x.safetensors") == {}


def test_weights_in_memory_that_are_pages_of_the_file_survive(tmp_path: Path) -> None:
    """Written over in place, the file would change under those who read it."""
    file = tmp_path / "x.safetensors"
    write_shard(file, {"a": torch.ones(1 << 20)})
    mapped = load_file(file)["a"]
    write_shard(file, {"a": torch.zeros(1 << 20)})
    assert mapped.sum() == 1 << 20
    assert load_file(file)["a"].sum() == 0


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    file = tmp_path / "x"
    write_file(file, [b"before"])

    def no_room(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, no_room)
    with pytest.raises(OSError, match=rf"{file}: could not be written \(No space left on device\); free some space"):
        write_file(file, [b"after"])
    assert [file.read_bytes(), *tmp_path.iterdir()] == [b"before", file]


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any other order a power cut leaves the name with nothing behind it; the folder comes last, with the name."""
    calls: list[str] = []

    def noted(name: str, original: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            calls.append(name if name == "replace" else "fsync " + os.readlink(f"/proc/self/fd/{args[0]}"))
            original(*args)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    write_file(tmp_path / "x", [b"a", memoryview(b"b")])
    assert calls == [f"fsync {tmp_path}/x{PARTIAL}", "replace", f"fsync {tmp_path}"]
    assert (tmp_path / "x").read_bytes() == b"ab"


def test_no_file_has_no_digest(tmp_path: Path) -> None:
    assert digest_of(tmp_path / "x") is None
