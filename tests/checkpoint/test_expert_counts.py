"""Layers of different sizes as other tools say them in config.json, read to the model that they mean."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stun_exp.api import inspect
from stun_exp.checkpoint.architecture import Architecture
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.moe.families import FAMILIES

Written = Callable[[Checkpoint, dict[int, list[list[int]]]], Checkpoint]
FOUR = [[0], [2], [3], [5]]
FORMS = {
    "per_layer_num_experts": lambda key, counts: {"per_layer_num_experts": counts},
    # As some tools write it: a layer without experts has as many as the others had.
    "with numbers for dense layers": lambda key, counts: {"per_layer_num_experts": [n or 6 for n in counts]},
    "expert_list": lambda key, counts: {key: counts},
    "with null for dense layers": lambda key, counts: {key: [n or None for n in counts]},
    # As transformers writes it: numbers of two digits, and those layers alone that differ from the model's count.
    "per_layer_config": lambda key, counts: {
        "per_layer_config": {f"{i:02}": {key: n} for i, n in enumerate(counts) if n not in (0, 6)}
    },
}


def rewrite(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.pop("experts_per_layer", None)
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture
def unequal(write_regrouped: Written, tiny_model: Callable[[str], Path]) -> Callable[[str], Checkpoint]:
    """family -> a copy of its tiny model whose last layer keeps 4 of 6 experts."""

    def write(family: str) -> Checkpoint:
        source = Checkpoint(tiny_model(family), None)
        last = max(layer.index for layer in source.outlines if layer.is_moe)
        return write_regrouped(source, {last: FOUR})

    return write


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["glm4_moe", "hunyuan_v1_moe", "llama4_text", "qwen3_moe"])
def test_every_form_is_read_to_the_same_model(
    name: str, form: str, unequal: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    """Pruned once more, and saved by transformers, it has our form; families have a dense layer or none."""
    written = unequal(name)
    counts, before = written.experts_per_layer, load_checkpoint(written.path, torch.device("cpu")).state_dict()
    assert counts is not None
    rewrite(written.path, **FORMS[form](FAMILIES[name].num_experts_key, counts))
    again = Checkpoint(written.path, None)
    assert again.experts_per_layer == counts
    model = load_checkpoint(written.path, torch.device("cpu"))
    after = model.state_dict()
    assert {key: tensor.shape for key, tensor in after.items()} == {key: tensor.shape for key, tensor in before.items()}
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert model.config.experts_per_layer == counts
    copy = CheckpointWriter(again, tmp_path / "copy")
    for index in range(again.num_layers):
        copy.write_layer(again.read_layer(index))
    copy.finish()
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config["experts_per_layer"] == counts
    assert not {"per_layer_num_experts", "per_layer_config"} & config.keys()
    assert {part[key] for part, key in again.count_keys(config)} == {6}


def test_layers_that_become_equal_again_have_one_number(unequal: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    written = unequal("arctic")
    rewrite(written.path, num_local_experts=[0, 4, 0])
    source = Checkpoint(written.path, None)
    copy = CheckpointWriter(source, tmp_path / "copy")
    for index in range(source.num_layers):
        copy.write_layer(source.read_layer(index))
    copy.finish()
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert (config["num_local_experts"], "experts_per_layer" in config) == (4, False)
    assert Checkpoint(tmp_path / "copy", None).experts_per_layer is None


def test_a_list_is_read_where_one_number_is_expected(
    tiny_model: Callable[[str], Path], unequal: Callable[[str], Checkpoint]
) -> None:
    """As STUN's published Arctic has it, in which each layer has experts: it was a traceback."""
    config = json.loads((tiny_model("arctic") / "config.json").read_text())
    config |= {"num_local_experts": [6, 4, 5], "moe_layer_frequency": 1}
    assert Architecture(Path("arctic"), dimensions=config).experts_per_layer == [6, 4, 5]
    folder = unequal("arctic").path
    rewrite(folder, num_local_experts=[0, 4, 0])
    assert "4 a layer" in str(inspect(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_local_experts": [6, 6]}, "num_local_experts has 2 numbers, and the model has 3 layers"),
        ({"num_local_experts": [6, 6, "4"]}, "num_local_experts must be a list of whole numbers"),
        ({"num_local_experts": [6, 6, 10**12]}, "num_local_experts must be a list of whole numbers up to 10,000"),
        ({"per_layer_num_experts": [6, 0, 4]}, "per_layer_num_experts says that layer 1 has no experts"),
        ({"per_layer_num_experts": 4}, "per_layer_num_experts must be a list"),
        ({"per_layer_config": {"2": {"hidden_size": 8}}}, "per_layer_config sets hidden_size of layer 2"),
        ({"per_layer_config": {"3": {"num_local_experts": 4}}}, "per_layer_config names layer 3"),
        ({"per_layer_config": [4]}, "per_layer_config must say the expert count of layers by their numbers"),
        (
            {"per_layer_num_experts": [6, 6, 4], "num_local_experts": [6, 6, 5]},
            "per_layer_num_experts says that layer 2 has 4 experts, and num_local_experts 5; remove the one",
        ),
        ({"per_layer_num_experts": [6, 6, 5]}, "has 4 experts on disk, and config.json says num_local_experts=5"),
    ],
)
def test_what_cannot_be_is_one_line(
    unequal: Callable[[str], Checkpoint], changes: dict[str, Any], message: str
) -> None:
    folder = unequal("mixtral").path
    rewrite(folder, **changes)
    with pytest.raises(ValueError, match=message) as error:
        Checkpoint(folder, None)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
