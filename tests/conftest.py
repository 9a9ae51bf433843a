"""Tiny random models of real families, on disk as their owners ship them."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    MixtralConfig,
    OlmoeConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from stun_exp.checkpoint import Checkpoint, CheckpointWriter
from stun_exp.moe import families

FAMILIES = list(families.FAMILIES)  # a family without a tiny model below fails every test that runs over families
NUM_EXPERTS, TOP_K, NUM_LAYERS, VOCAB = 6, 2, 3, 64


def tiny_config(family: str) -> PretrainedConfig:
    """Small, and shaped so that every dimension is different."""
    shared = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts_per_tok": TOP_K,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    match family:
        case "mixtral":
            return MixtralConfig(**shared, intermediate_size=24, num_local_experts=NUM_EXPERTS, sliding_window=None)
        case "qwen2_moe":
            # One dense layer, and a shared expert in the others.
            return Qwen2MoeConfig(
                **shared,
                intermediate_size=40,
                moe_intermediate_size=24,
                shared_expert_intermediate_size=32,
                num_experts=NUM_EXPERTS,
                mlp_only_layers=[0],
            )
        case "qwen3_moe":
            return Qwen3MoeConfig(
                **shared, intermediate_size=40, moe_intermediate_size=24, num_experts=NUM_EXPERTS, head_dim=8
            )
        case "olmoe":
            return OlmoeConfig(**shared, intermediate_size=24, num_experts=NUM_EXPERTS)
    raise AssertionError(family)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> folder of a tiny random model with a tokenizer; made once a session, do not write to it."""
    folders: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in folders:
            torch.manual_seed(FAMILIES.index(family))
            model = AutoModelForCausalLM.from_config(tiny_config(family))
            for parameter in model.parameters():
                # The default initialisation is so small that all experts would look alike.
                parameter.data.add_(0.2 * torch.randn_like(parameter))
            folders[family] = tmp_path_factory.mktemp(family)
            model.save_pretrained(folders[family])
            tokenizer().save_pretrained(folders[family])
        return folders[family]

    return make


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of `VOCAB` words w0 ... w63."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w0", unk_token="w0")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny matrices gain nothing from threads, and pytest's workers would fight over the cores."""
    torch.set_num_threads(1)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each supported family in turn."""
    return str(request.param)


@pytest.fixture
def checkpoint(family: str, tiny_model: Callable[[str], Path]) -> Checkpoint:
    """The tiny model of each family in turn."""
    return Checkpoint(tiny_model(family), None)


@pytest.fixture
def mixtral(tiny_model: Callable[[str], Path]) -> Checkpoint:
    """The tiny Mixtral, for facts that do not depend on the family."""
    return Checkpoint(tiny_model("mixtral"), None)


@pytest.fixture
def mixtral_copy(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder of the tiny Mixtral that a test may damage."""
    return Path(copytree(tiny_model("mixtral"), tmp_path / "copy"))


@pytest.fixture
def write_regrouped(tmp_path: Path) -> Callable[[Checkpoint, dict[int, list[list[int]]]], Checkpoint]:
    """(source, layer -> groups) -> the written copy in which those layers are regrouped."""

    def write(source: Checkpoint, groups: dict[int, list[list[int]]]) -> Checkpoint:
        writer = CheckpointWriter(source, tmp_path / f"written{len(list(tmp_path.iterdir()))}")
        for index in range(source.num_layers):
            layer = source.read_layer(index)
            if index in groups:
                layer.regroup(groups[index])
            writer.write_layer(layer)
        writer.finish()
        return Checkpoint(writer.path, None)

    return write


@pytest.fixture
def tokens_BT() -> torch.Tensor:
    return torch.randint(0, VOCAB, (4, 32), generator=torch.Generator().manual_seed(0))
