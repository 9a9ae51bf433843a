"""The published Mixtral-8x7B as a folder without weights: config.json, and an index of files that are not there."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from stun_exp.checkpoint.shards import INDEX
from stun_exp.cli.main import CONF
from stun_exp.config.build import build

CARD = yaml.safe_load((CONF / "model" / "mixtral_8x7b.yaml").read_text())
ATTENTION = [f"self_attn.{name}_proj.weight" for name in "qkvo"]
NORMS = ["input_layernorm.weight", "post_attention_layernorm.weight"]


def published_keys() -> list[str]:
    """The 32 layers of 8 experts under the names in which they are published."""
    experts = [f"block_sparse_moe.experts.{expert}.w{i}.weight" for expert in range(8) for i in (1, 2, 3)]
    layer = [*ATTENTION, *NORMS, "block_sparse_moe.gate.weight", *experts]
    inside = [f"model.layers.{index}.{name}" for index in range(32) for name in layer]
    return ["model.embed_tokens.weight", *inside, "model.norm.weight", "lm_head.weight"]


@pytest.fixture
def published(tmp_path: Path) -> Callable[..., Path]:
    """The folder; if asked without the keys that match a pattern, with further ones, or with other settings."""

    def make(without: str = "$^", plus: Sequence[str] = (), **changes: Any) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(CARD["dimensions"] | {"dtype": "bfloat16"} | changes))
        keys = [key for key in (*published_keys(), *plus) if not re.search(without, key)]
        files = dict.fromkeys(keys, "model-00001-of-00001.safetensors")
        index = {"metadata": {"total_size": 93_405_585_408}, "weight_map": files}
        (tmp_path / INDEX).write_text(json.dumps(index))
        return tmp_path

    return make


@pytest.fixture
def composed() -> Callable[..., DictConfig]:
    """The config of a run on a local folder, on the CPU."""

    def make(path: Path, *overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            local = ["model=local", f"model.path={path}", "model.device=cpu", "name=x"]
            return compose("config", [*local, *overrides])

    return make


@pytest.fixture
def settings(composed: Callable[..., DictConfig]) -> Callable[..., Any]:
    """The settings of a run on a local folder, on the CPU."""
    return lambda path, *overrides: build(composed(path, *overrides))
