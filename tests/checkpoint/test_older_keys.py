"""config.json in two spellings: readers of before transformers 5 take defaults of their own for what they miss."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from stun_exp.checkpoint.architecture import Architecture
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.older_keys import with_older_keys
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.moe.families import FAMILIES

TOYS = sorted((Path(__file__).parents[2] / "stun_exp" / "toy").glob("weights*"))
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 500.0}


def written(source: Checkpoint, folder: Path) -> Path:
    writer = CheckpointWriter(source, folder)
    for index in range(source.num_layers):
        writer.write_layer(source.read_layer(index))
    writer.finish()
    return writer.path


def check_both(folder: Path) -> None:
    """What transformers computes with is what the older keys say."""
    config = json.loads((folder / "config.json").read_text())
    rope = getattr(Architecture(folder).config, "rope_parameters", None)
    assert config["torch_dtype"] == config["dtype"]
    if rope and "rope_theta" in rope:  # Gemma 3 has one for each kind of layer, which has no older spelling
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == rope["rope_theta"]
        assert config.get("partial_rotary_factor") == rope.get("partial_rotary_factor")
        scaling = config["rope_scaling"] or {"type": "default"}
        assert scaling["type"] == rope["rope_type"]
        assert all(rope[key] == value for key, value in scaling.items() if key != "type")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_config_says_the_same_in_both_spellings(
    family: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    source = Checkpoint(tiny_model(family), None)
    folder = written(source, tmp_path / "out")
    check_both(folder)
    before, after = (getattr(one.config, "rope_parameters", None) for one in (source, Architecture(folder)))
    assert {**(before or {}), "type": None} == {**(after or {}), "type": None}


def test_the_expert_count_has_the_name_that_the_models_owners_gave_it(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """transformers saves that of Qwen3-MoE as `num_local_experts`, and mlx-lm reads `num_experts` alone."""
    source = Checkpoint(tiny_model("qwen3_moe"), None)
    config = json.loads((written(source, tmp_path / "out") / "config.json").read_text())
    assert "num_experts" not in source.raw
    assert config["num_experts"] == config["num_local_experts"] == 6


@pytest.mark.parametrize("folder", TOYS, ids=lambda folder: folder.name)
def test_the_bundled_models_have_both_spellings(folder: Path) -> None:
    check_both(folder)


def test_an_older_source_gets_the_newer_spelling(mixtral_copy: Path, tmp_path: Path) -> None:
    """theta 500 stands at the top there, and yarn under `rope_scaling` with its older name."""
    config = json.loads((mixtral_copy / "config.json").read_text())
    del config["rope_parameters"], config["dtype"]
    older = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    config |= {"rope_theta": 500.0, "rope_scaling": older, "torch_dtype": "float32", "head_dim": 4}
    (mixtral_copy / "config.json").write_text(json.dumps(config))
    folder = written(Checkpoint(mixtral_copy, torch.bfloat16), tmp_path / "out")
    check_both(folder)
    found = json.loads((folder / "config.json").read_text())
    assert (found["dtype"], found["rope_theta"]) == ("bfloat16", 500.0)
    assert found["rope_parameters"] == {**YARN, "type": "yarn"}
    assert found["rope_scaling"].items() >= older.items()
    assert AutoConfig.from_pretrained(folder).rope_parameters == {**YARN, "type": "yarn"}


def test_scaling_is_whole_where_it_stands_by_itself() -> None:
    """transformers takes `rope_scaling` in the place of `rope_parameters`; mlx-lm knows it by `type`."""
    config = with_older_keys({"dtype": "bfloat16", "torch_dtype": "float32"}, YARN)
    assert config["torch_dtype"] == "bfloat16"
    assert config["rope_scaling"] == {
        "rope_type": "yarn", "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16
    }  # fmt: skip


def test_a_model_without_rotary_embedding_gets_none() -> None:
    assert with_older_keys({"dtype": "float32"}, None) == {"dtype": "float32", "torch_dtype": "float32"}
