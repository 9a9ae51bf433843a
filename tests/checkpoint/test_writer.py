"""A checkpoint folder that is whole as soon as it has an index, and that can be gone on with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stun_exp.checkpoint import writer as module
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.shards import INDEX
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.moe.families import FAMILIES


def write(source: Checkpoint, path: Path, finished: dict[int, Any] | None = None) -> CheckpointWriter:
    """All that is not finished."""
    writer = CheckpointWriter(source, path, finished)
    for index in range(source.num_layers):
        if index not in writer.shards:
            writer.write_layer(source.read_layer(index))
    writer.finish()
    return writer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_layer_can_be_put_back(tiny_model: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    """Whatever becomes of its tensors on the way to disk, and with fewer experts than the source has."""
    source = Checkpoint(tiny_model(family), None)
    writer = CheckpointWriter(source, tmp_path / "out")
    for index in range(source.num_layers):
        layer, planned = source.read_layer(index), source.read_layer(index)
        for each in (layer, planned) if layer.is_moe else ():
            each.regroup([[0], [2], [3], [5]])
        for tensor in layer.module.parameters():
            tensor.mul_(1.5)  # as if it had been pruned
        expected = {name: tensor.clone() for name, tensor in layer.module.state_dict().items()}
        writer.write_layer(layer)
        writer.restore_(planned)
        found = planned.module.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_index_comes_last_and_the_config_before_it(
    mixtral: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever finds an index finds all that belongs to it."""
    order: list[str] = []
    original = module.write_file

    def noted(file: Path, content: Any) -> str:
        order.append(file.name)
        return original(file, content)

    monkeypatch.setattr(module, "write_file", noted)
    writer = write(mixtral, tmp_path / "out")
    assert order[-2:] == ["config.json", INDEX]
    assert {*order, *(shard.name for shard in writer.shards.values())} == {file.name for file in writer.path.iterdir()}


def test_going_on_keeps_what_is_finished(mixtral: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index goes first: without it half a folder is no checkpoint. The rest is the same, byte for byte."""
    first = write(mixtral, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in first.path.iterdir()}
    gone: list[str] = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, *args, **kw: (gone.append(self.name), unlink(self, *args, **kw)))
    again = CheckpointWriter(mixtral, tmp_path / "out", {0: first.shards[0], 2: first.shards[2]})
    assert gone == [INDEX]  # all else is for the run to remove, which knows what is its own
    again.write_layer(mixtral.read_layer(1))
    again.finish()
    assert {file.name: file.read_bytes() for file in again.path.iterdir()} == before


def test_a_folder_that_is_gone_on_with_has_no_index(mixtral: Checkpoint, tmp_path: Path) -> None:
    """And keeps all else, whoever's it is."""
    write(mixtral, tmp_path / "out")
    before = {file.name for file in (tmp_path / "out").iterdir()}
    assert len(before) > 1
    assert {file.name for file in CheckpointWriter(mixtral, tmp_path / "out", {}).path.iterdir()} == before - {INDEX}


def test_room_is_asked_for_what_is_missing(
    mixtral: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer: attention of 16 x (16 + 8 + 8 + 16), six experts of 3 x 16 x 24, their router, two norms; in fp32."""
    layer = 4 * (16 * 48 + 6 * 3 * 16 * 24 + 6 * 16 + 2 * 16)
    rest = 4 * (2 * 64 * 16 + 16)
    first = write(mixtral, tmp_path / "out")
    monkeypatch.setattr(module, "disk_usage", lambda path: SimpleNamespace(free=2 * layer + rest))
    with pytest.raises(OSError, match=r"the checkpoint needs up to 0\.1 MB and"):
        CheckpointWriter(mixtral, tmp_path / "other")
    CheckpointWriter(mixtral, tmp_path / "out", {1: first.shards[1]})
    monkeypatch.setattr(module, "disk_usage", lambda path: SimpleNamespace(free=2 * layer + rest - 1))
    with pytest.raises(OSError, match=r"the checkpoint needs up to 0\.1 MB more and"):
        CheckpointWriter(mixtral, tmp_path / "out", {1: first.shards[1]})


def test_terms_of_use_come_along_and_the_source_card_does_not(mixtral_copy: Path, tmp_path: Path) -> None:
    """A card tells of the model that it lies with."""
    terms = ["LICENSE", "LICENSE.md", "LICENCE.txt", "license.pdf", "NOTICE", "USE_POLICY.md"]
    others = ["README.md", "pytorch_model.bin", "events.log"]
    for name in (*terms, *others):
        (mixtral_copy / name).write_bytes(name.encode())
    (mixtral_copy / "original").mkdir()
    (mixtral_copy / "license_texts").mkdir()
    path = write(Checkpoint(mixtral_copy, None), tmp_path / "out").path
    assert all((path / name).read_bytes() == name.encode() for name in terms)
    assert not any((path / name).exists() for name in (*others, "original", "license_texts"))
    assert (path / "tokenizer.json").read_bytes() == (mixtral_copy / "tokenizer.json").read_bytes()


def test_checksums_follow_the_files(mixtral: Checkpoint, tmp_path: Path) -> None:
    writer = write(mixtral, tmp_path / "out")
    assert writer.rehash() == writer.shards
    shutil.copyfile(writer.path / writer.shards[0].name, writer.path / writer.shards[1].name)
    assert writer.rehash()[1].sha256 == writer.shards[0].sha256
    assert writer.rehash()[1].keys == writer.shards[1].keys


def test_counts_are_those_of_the_shards(mixtral: Checkpoint, tmp_path: Path) -> None:
    """Of finished layers too, which are not looked at again."""
    writer = CheckpointWriter(mixtral, tmp_path / "out")
    for index, kept in enumerate(([0, 1], [0, 1, 2], [0, 1, 2])):
        layer = mixtral.read_layer(index)
        layer.regroup([[expert] for expert in kept])
        writer.write_layer(layer)
    CheckpointWriter(mixtral, tmp_path / "out", writer.shards).finish()
    assert json.loads((tmp_path / "out/config.json").read_text())["experts_per_layer"] == [2, 3, 3]
