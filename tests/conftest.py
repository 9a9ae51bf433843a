"""Tiny random models of real families, on disk as their owners ship them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.cli.main import CONF
from stun_exp.config.build import build
from stun_exp.config.settings import specs_of
from stun_exp.models import register
from stun_exp.moe import families
from stun_exp.pipeline.run import run

pytest_plugins = ["conf_tree_fixtures", "report_fixtures", "vllm_fixtures"]

FAMILIES = list(families.FAMILIES)  # a family without a tiny model below fails the tests that run over families
MOE_FAMILIES = [name for name in FAMILIES if name not in families.DENSE]
TYPICAL = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"]
NUM_EXPERTS, TOP_K, NUM_LAYERS, VOCAB = 6, 2, 3, 64

_SHARED = {
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
_SEQ2SEQ = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "num_experts": NUM_EXPERTS,
    "expert_capacity": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "decoder_start_token_id": 0,
}
# DeepSeek's attention, and its choice among groups of experts.
_LATENT = {"kv_lora_rank": 8, "q_lora_rank": 12, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 6}
_WIDTHS = {"intermediate_size": 40, "moe_intermediate_size": 24}
_GROUPS = {
    "n_routed_experts": NUM_EXPERTS,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_HEADS = {"num_key_value_heads": 4}
# What a family's config needs beyond what all share: one dense layer where the family can have some, shared experts
# where it can, groups where it can.
_CONFIGS: dict[str, dict[str, Any]] = {
    "arctic": {"intermediate_size": 24, "num_local_experts": NUM_EXPERTS, "moe_layer_frequency": 2},
    "dbrx": {
        "d_model": 16,
        "n_heads": 4,
        "n_layers": NUM_LAYERS,
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {
            "ffn_hidden_size": 24,
            "moe_num_experts": NUM_EXPERTS,
            "moe_top_k": TOP_K,
            "hidden_size": 16,
            "ffn_act_fn": {"name": "silu"},
        },
    },
    "deepseek_v2": _LATENT
    | _WIDTHS
    | _GROUPS
    | _HEADS
    | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5},
    "deepseek_v3": _LATENT | _WIDTHS | _GROUPS | _HEADS | {"norm_topk_prob": True},
    "dots1": _WIDTHS | _GROUPS | {"norm_topk_prob": True},
    "ernie4_5_moe": _WIDTHS
    | {"moe_num_experts": NUM_EXPERTS, "moe_k": TOP_K, "moe_num_shared_experts": 1, "moe_layer_start_index": 1},
    "flex_olmo": {"intermediate_size": 24, "num_experts": NUM_EXPERTS},
    "glm4_moe": _WIDTHS | _GROUPS | {"head_dim": 8, "norm_topk_prob": True},
    "gpt_oss": {"intermediate_size": 24, "num_local_experts": NUM_EXPERTS, "head_dim": 8, "sliding_window": 8},
    "granitemoe": {"intermediate_size": 24, "num_local_experts": NUM_EXPERTS},
    "hunyuan_v1_moe": {"intermediate_size": 24, "num_experts": NUM_EXPERTS, "moe_topk": TOP_K, "head_dim": 8},
    "jamba": {
        "intermediate_size": 24,
        "num_experts": NUM_EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 0,
        "use_mamba_kernels": False,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "llama4_text": {
        "intermediate_size": 24,
        "intermediate_size_mlp": 40,
        "num_local_experts": NUM_EXPERTS,
        "num_experts_per_tok": 1,
        "head_dim": 8,
        "moe_layers": [1, 2],
        "attention_chunk_size": 16,
    },
    "minimax": {
        "intermediate_size": 24,
        "num_local_experts": NUM_EXPERTS,
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "block_size": 8,
    },
    "mixtral": {"intermediate_size": 24, "num_local_experts": NUM_EXPERTS, "sliding_window": None},
    "nllb-moe": {
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "encoder_sparse_step": 2,
        "decoder_sparse_step": 2,
        "max_position_embeddings": 64,
    },
    "olmoe": {"intermediate_size": 24, "num_experts": NUM_EXPERTS},
    "phimoe": {"intermediate_size": 24, "num_local_experts": NUM_EXPERTS},
    "qwen2_moe": _WIDTHS | {"shared_expert_intermediate_size": 32, "num_experts": NUM_EXPERTS, "mlp_only_layers": [0]},
    "qwen3_moe": _WIDTHS | {"num_experts": NUM_EXPERTS, "head_dim": 8},
    "qwen3_next": _WIDTHS
    | {
        "num_experts": NUM_EXPERTS,
        "shared_expert_intermediate_size": 32,
        "head_dim": 8,
        "mlp_only_layers": [0],
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 4,
    },
    "switch_transformers": {
        "d_kv": 4,
        "d_ff": 24,
        "num_heads": 4,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "relative_attention_num_buckets": 8,
        "tie_word_embeddings": True,
    },
    "gemma2": {"intermediate_size": 24, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"intermediate_size": 24, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gpt_neox": {"intermediate_size": 24},
    "llama": {"intermediate_size": 24},
    "mistral": {"intermediate_size": 24, "sliding_window": None},
    "olmo2": {"intermediate_size": 24},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16, "init_std": 0.2},
    "phi3": {"intermediate_size": 24},
    "qwen2": {"intermediate_size": 24},
    "qwen3": {"intermediate_size": 24, "head_dim": 8},
    "smollm3": {"intermediate_size": 24},
}


def tiny_config(family: str) -> PretrainedConfig:
    """Small, and shaped so that every dimension is different."""
    register()
    shared = _SEQ2SEQ if len(families.FAMILIES[family].stacks) == 2 else _SHARED
    return AutoConfig.for_model(family, **shared | _CONFIGS[family])


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> folder of a tiny random model with a tokenizer; made once a session, do not write to it."""
    folders: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in folders:
            torch.manual_seed(sum(map(ord, family)))
            config = tiny_config(family)
            auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            model = auto.from_config(config)
            for parameter in model.parameters():
                # The default initialization is so small that all experts would look alike.
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
    """Tiny matrices gain nothing from threads, and pytest's workers would fight over the cores.

    `make test-kernels` asks for more, because kernels may share out and add up their work in another order then.
    """
    torch.set_num_threads(int(os.environ.get("STUN_TEST_THREADS", "1")))


@pytest.fixture(params=TYPICAL)
def family(request: pytest.FixtureRequest) -> str:
    """Families that differ in what most of the project looks at; the facts that hold for all are in test_families."""
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
def run_with() -> Callable[..., dict[str, Any]]:
    """(folder, overrides) -> the report of one run on the CPU into that folder, no benchmarks; {} if it left none."""

    def go(out: Path, *overrides: str) -> dict[str, Any]:
        base = ["model=local", "model.device=cpu", "eval=none", "name=test", "cache=none"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("config", [*base, *overrides])
        out.mkdir(exist_ok=True)
        config = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(config, dict)
        run(specs_of(build(cfg), {str(key): value for key, value in config.items()}, out))
        report = out / "report.json"
        return json.loads(report.read_text()) if report.exists() else {}

    return go


@pytest.fixture
def runner(
    tiny_model: Callable[[str], Path], run_with: Callable[..., dict[str, Any]], tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Runs a tiny model with overrides into tmp_path/run and returns the report."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 64, (64, 40), generator=generator).tolist()
    text = tmp_path / "calibration.jsonl"
    text.write_text("\n".join(json.dumps({"input_ids": row}) for row in rows))

    def go(*overrides: str, family: str = "mixtral", out: Path = tmp_path / "run") -> dict[str, Any]:
        return run_with(
            out,
            f"model.path={tiny_model(family)}",
            "calibration=local",
            f"calibration.path={text}",
            "calibration.sequence_length=32",
            "calibration.num_sequences=16",
            "calibration.batch_size=4",
            *overrides,
        )

    return go


@pytest.fixture
def tokens_BT() -> torch.Tensor:
    return torch.randint(0, VOCAB, (4, 32), generator=torch.Generator().manual_seed(0))
