"""The published models of conf/model: their sizes, recomputed from the published architectures without weights.

Their dimensions are what their owners publish in config.json.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

from stun_exp.checkpoint.architecture import Architecture
from stun_exp.checkpoint.model import Model
from stun_exp.cli.main import CONF
from stun_exp.config.build import build
from stun_exp.moe.families import family_of

CARDS: dict[str, dict[str, Any]] = {file.stem: yaml.safe_load(file.read_text()) for file in CONF.glob("model/*.yaml")}
PUBLISHED = sorted(name for name, card in CARDS.items() if card["path"] != "???" and "bundled:" not in card["path"])


def test_published_models_and_no_others_have_dimensions() -> None:
    assert [name for name in sorted(CARDS) if CARDS[name]["dimensions"] is not None] == PUBLISHED
    assert {"mixtral_8x7b", "mixtral_8x22b", "arctic", "arctic_instruct", "deepseek_v2_lite"} <= set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_of_a_card_are_those_of_its_dimensions(name: str) -> None:
    architecture = Architecture(Path(name), torch.bfloat16, CARDS[name]["dimensions"])
    assert architecture.num_parameters == CARDS[name]["parameters"]


def mixtral_8x7b() -> int:
    attention = 2 * 4096 * 4096 + 2 * 4096 * 1024  # q and o, k and v: 8 of 32 heads
    experts = 8 * 3 * 4096 * 14336
    layer = attention + experts + 8 * 4096 + 2 * 4096  # router, two norms
    return 32 * layer + 2 * 32000 * 4096 + 4096  # embeddings and head, final norm


def qwen3_30b_a3b() -> int:
    attention = 2 * 2048 * 4096 + 2 * 2048 * 512 + 2 * 128  # 32 heads of 128, 4 key-value heads, a norm for q and for k
    experts = 128 * 3 * 2048 * 768
    return 48 * (attention + experts + 128 * 2048 + 2 * 2048) + 2 * 151936 * 2048 + 2048


def deepseek_v2_lite() -> int:
    latent = 2048 * (512 + 64) + 512  # down to the latent and the shared rotary key, and the latent's norm
    attention = 2048 * 16 * (128 + 64) + latent + 512 * 16 * (128 + 128) + 16 * 128 * 2048
    experts = (64 + 2) * 3 * 2048 * 1408 + 64 * 2048  # routed and shared, router
    dense = 3 * 2048 * 10944  # the first layer
    return 27 * (attention + 2 * 2048) + dense + 26 * experts + 2 * 102400 * 2048 + 2048


def arctic(kv_heads: int) -> int:
    attention = 2 * 7168 * 7168 + 2 * 7168 * 128 * kv_heads
    residual = 3 * 7168 * 7168
    experts = 128 * 3 * 7168 * 4864
    return 35 * (attention + residual + experts + 128 * 7168 + 3 * 7168) + 2 * 32000 * 7168 + 7168


def test_five_sizes_worked_by_hand() -> None:
    """The two Arctics differ: the base model's config says 56 key-value heads, the instruct model's 8."""
    by_hand = {
        "mixtral_8x7b": mixtral_8x7b(),
        "qwen3_30b_a3b": qwen3_30b_a3b(),
        "deepseek_v2_lite": deepseek_v2_lite(),
        "arctic": arctic(56),
        "arctic_instruct": arctic(8),
    }
    assert by_hand == {name: CARDS[name]["parameters"] for name in by_hand}
    # the model cards say 46.7, 30.5, 15.7, 482 and 479 billion
    assert [round(n / 1e8) for n in by_hand.values()] == [467, 305, 157, 4817, 4786]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_is_of_a_known_family(name: str) -> None:
    raw = CARDS[name]["dimensions"]
    family = family_of(raw["model_type"], Path(name))
    assert family.is_dense or raw[family.num_experts_key] >= 8


def test_revisions_are_whole_commits_and_foreign_code_stays_off() -> None:
    """A branch or a short hash may come to mean something else."""
    for name, card in CARDS.items():
        assert card["revision"] is None or re.fullmatch("[0-9a-f]{40}", card["revision"]), name
        assert (card["trust_remote_code"], card["load"]) == (False, "full"), name


def settings(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return build(compose("config", list(overrides)))


def test_the_ratio_of_experts_is_the_model_s_unless_given() -> None:
    assert settings("name=x").expert_pruner.ratio == 0.2
    assert settings("name=x", "model=mixtral_8x7b").expert_pruner.ratio == 0.125
    assert settings("name=x", "model=mixtral_8x7b", "expert_pruner=random").expert_pruner.ratio == 0.125
    assert settings("name=x", "model=mixtral_8x7b", "expert_pruner.ratio=0.3").expert_pruner.ratio == 0.3


def test_every_expert_pruner_with_a_ratio_takes_the_model_s() -> None:
    files = list(CONF.glob("expert_pruner/*.yaml"))
    assert files
    for file in files:
        assert yaml.safe_load(file.read_text()).get("ratio") in (None, "${model.expert_ratio}"), file.name


def test_the_paper_s_ratios_are_whole_experts() -> None:
    """STUN's code keeps 3,570 of Arctic's 4,480 experts; of Mixtral-8x7B one expert in eight goes."""
    raw = CARDS["arctic"]["dimensions"]
    total = raw["num_hidden_layers"] * raw["num_local_experts"]
    assert total - round(total * CARDS["arctic"]["expert_ratio"]) == 3570
    assert 8 * CARDS["mixtral_8x7b"]["expert_ratio"] == 1


def model(parameters: int | None) -> Model:
    return Model(**{k: v for k, v in CARDS["toy_moe"].items() if k != "_target_"} | {"parameters": parameters})


def test_a_checkpoint_of_another_size_is_refused_when_it_is_opened() -> None:
    expected = CARDS["toy_moe"]["parameters"]
    assert model(expected).open().num_parameters == model(None).open().num_parameters == expected
    with pytest.raises(ValueError, match=r"model\.parameters=7: .*toy_moe has 3,851,392 .* not 7; .*parameters=null"):
        model(7).open()
