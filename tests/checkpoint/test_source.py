"""What is read of a model's folder, and what comes along: its own files and no others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.shards import INDEX, SINGLE
from stun_exp.checkpoint.source import carried_files
from stun_exp.checkpoint.writer import CheckpointWriter


@pytest.fixture
def sharded(mixtral_copy: Path) -> Path:
    """The tiny Mixtral in two shards with an index."""
    tensors = load_file(mixtral_copy / SINGLE)
    weight_map = {key: f"part-{number % 2}.safetensors" for number, key in enumerate(sorted(tensors))}
    for name in set(weight_map.values()):
        save_file({key: tensors[key] for key in tensors if weight_map[key] == name}, mixtral_copy / name)
    (mixtral_copy / SINGLE).unlink()
    (mixtral_copy / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return mixtral_copy


def edit_index(folder: Path, edit: Callable[[dict[str, str]], None]) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("absolute", [False, True])
def test_a_file_outside_the_folder_is_not_read(sharded: Path, tmp_path: Path, absolute: bool) -> None:
    """Though it is there, and whole."""
    outside = tmp_path / "part-1.safetensors"
    (sharded / "part-1.safetensors").rename(outside)
    name = str(outside) if absolute else f"../{outside.name}"
    edit_index(sharded, lambda files: files.update({key: name for key in files if files[key].startswith("part-1")}))
    with pytest.raises(ValueError, match=r"index\.json: names '.*part-1\.safetensors', which is outside the folder"):
        Checkpoint(sharded, None)


@pytest.mark.parametrize("name", ["part-1.safetensors", "config.json", INDEX])
def test_a_link_that_leads_out_of_the_folder_is_not_followed(sharded: Path, tmp_path: Path, name: str) -> None:
    (sharded / name).rename(tmp_path / "elsewhere")
    (sharded / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"a link to .*elsewhere, outside the model's folder"):
        Checkpoint(sharded, None)


def test_the_links_of_the_hubs_cache_are_followed(sharded: Path, tmp_path: Path) -> None:
    """snapshots/REVISION/file -> ../../blobs/HASH, one level deeper for a file in a subfolder."""
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "0123abc"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    edit_index(sharded, lambda files: files.update({k: f"deep/{v}" for k, v in files.items() if v[5] == "1"}))
    for number, file in enumerate(sorted(sharded.iterdir())):
        deep = file.name == "part-1.safetensors"
        place = snapshot / "deep" / file.name if deep else snapshot / file.name
        place.parent.mkdir(exist_ok=True)
        shutil.copy(file, repository / "blobs" / f"{number:064}")
        place.symlink_to(f"{'../' * (2 + deep)}blobs/{number:064}")
    assert Checkpoint(snapshot, None).read_layer(2).num_experts
    assert "tokenizer.json" in carried_files(snapshot)[0]


def test_a_link_to_a_file_of_the_machine_is_not_copied(mixtral_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a key")
    (mixtral_copy / "notes.txt").symlink_to(tmp_path / "secret")
    (mixtral_copy / "more.txt").symlink_to("config.json")  # within the folder
    writer = CheckpointWriter(Checkpoint(mixtral_copy, None), tmp_path / "out")
    for index in range(writer.source.num_layers):
        writer.write_layer(writer.source.read_layer(index))
    writer.finish()
    assert not (tmp_path / "out" / "notes.txt").exists()
    assert (tmp_path / "out" / "more.txt").read_text() == (mixtral_copy / "config.json").read_text()
    (warning,) = carried_files(mixtral_copy)[1]
    assert (
        warning
        == f"{mixtral_copy / 'notes.txt'}: a link that leads out of the folder; it is not followed, and not written"
    )


def test_what_loads_the_tokenizer_again_comes_along(mixtral_copy: Path) -> None:
    """Code that tokenizer_config.json names, what that imports, vocabularies, and templates; no code of the model."""
    config = {"auto_map": {"AutoTokenizer": ["tokenization_x.Slow", None]}}
    (mixtral_copy / "tokenizer_config.json").write_text(json.dumps(config))
    (mixtral_copy / "tokenization_x.py").write_text("from .helper import a\nfrom .helper_of_none import b\n")
    (mixtral_copy / "helper.py").write_text("import json\n")
    (mixtral_copy / "modeling_x.py").write_text("")
    (mixtral_copy / "x.tiktoken").write_text("")
    (mixtral_copy / "additional_chat_templates").mkdir()
    (mixtral_copy / "additional_chat_templates" / "tool_use.jinja").write_text("")
    names, warnings = carried_files(mixtral_copy)
    assert {"tokenization_x.py", "helper.py", "x.tiktoken", "additional_chat_templates/tool_use.jinja"} <= set(names)
    assert "modeling_x.py" not in names
    assert [warning.partition(" names ")[2] for warning in warnings] == [
        "helper_of_none.py, which is not there; nor is it in what is written"
    ]


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_the_weights_is_refused(mixtral_copy: Path, name: str) -> None:
    """Transformers would put it on top of a base model: other weights than those that are read here."""
    (mixtral_copy / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"holds {name} beside the weights"):
        Checkpoint(mixtral_copy, None)


def test_a_single_file_beside_an_index_is_refused(sharded: Path) -> None:
    save_file({"x": torch.zeros(1)}, sharded / SINGLE)
    with pytest.raises(ValueError, match=rf"holds {SINGLE} and {INDEX}, which does not name it"):
        Checkpoint(sharded, None)


def test_a_key_that_the_index_alone_has_is_refused_on_opening(sharded: Path) -> None:
    """Wherever it belongs: outside the layers it was missed until they were all pruned."""
    edit_index(sharded, lambda files: files.update({"score.weight": "part-0.safetensors"}))
    with pytest.raises(ValueError, match=r"part-0\.safetensors: score\.weight is not in it"):
        Checkpoint(sharded, None)


def test_a_key_in_two_files_is_refused(sharded: Path) -> None:
    name = "lm_head.weight"
    tensors = [load_file(sharded / f"part-{part}.safetensors") for part in (0, 1)]
    (home,) = [part for part in (0, 1) if name in tensors[part]]
    save_file(tensors[1 - home] | {name: tensors[home][name]}, sharded / f"part-{1 - home}.safetensors")
    with pytest.raises(ValueError, match=rf"{name} is in part-0\.safetensors too"):
        Checkpoint(sharded, None)


@pytest.mark.parametrize("index", ["[]", '"x"', '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {'])
def test_an_index_that_is_none_is_named(sharded: Path, index: str) -> None:
    (sharded / INDEX).write_text(index)
    with pytest.raises(ValueError, match=rf"{INDEX}: "):
        Checkpoint(sharded, None)
