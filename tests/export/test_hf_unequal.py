"""Layers of different sizes in transformers: the generated code builds them, without this package."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, dynamic_module_utils
from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError

import stun_exp
from stun_exp.checkpoint.architecture import Architecture
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.export.generated import write_code
from stun_exp.export.hf_unequal import HfUnequalExport
from stun_exp.export.proof import prove
from stun_exp.export.protocol import Pruned
from stun_exp.moe.families import DENSE, FAMILIES

Make = Callable[..., Pruned]
CPU = torch.device("cpu")
EXPORT = HfUnequalExport(format="per_layer_config")
FOUR = [0, 2, 3, 5]
"""Two of each group of three, for the routers that choose among groups."""
REFUSED = {
    "arctic": "transformers 5.* has no ArcticForCausalLM",
    "dbrx": "ffn_config.moe_num_experts lies in a part of the config",
    "nllb-moe": "an encoder and a decoder",
    "switch_transformers": "an encoder and a decoder",
}
SUPPORTED = [name for name in FAMILIES if name not in (*REFUSED, *DENSE)]


@pytest.fixture(autouse=True)
def _copies_of_code_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def last_layer_cut(make_pruned: Make, family: str, dtype: torch.dtype | None = None) -> Pruned:
    """A model whose last layer keeps 4 of 6 experts, with its code."""
    pruned = make_pruned(family, {2: FOUR}, dtype=dtype)
    write_code(Architecture(pruned.folder))
    return pruned


def remote(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    return model.eval()


def logits(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(tokens_BT).logits


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_from_the_config_alone(name: str, tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=f"export=hf_unequal: .*{REFUSED[name]}.*; pass export=none"):
        EXPORT.check(Architecture(tiny_model(name)), 0.25, True)


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_code_builds_each_layer_as_it_is(name: str, make_pruned: Make, tokens_BT: Tensor) -> None:
    """The written model by its own code, and by load_checkpoint without it; it generates with a cache, too."""
    pruned = make_pruned(name, {2: FOUR})
    EXPORT.check(pruned.source, 0.25, True)
    expected = logits(load_checkpoint(pruned.folder, CPU), tokens_BT)
    write_code(Architecture(pruned.folder))
    model = remote(pruned.folder)
    assert (logits(model, tokens_BT) - expected).abs().max() < 1e-5
    # Weights that lie elsewhere in memory may take other kernels, which differ in the last digits.
    again = logits(stun_exp.load_pruned(pruned.folder), tokens_BT)
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)
    assert model.generate(tokens_BT[:1, :4], max_new_tokens=3, do_sample=False, eos_token_id=None).shape == (1, 7)


@pytest.mark.parametrize("name", ["mixtral", "glm4_moe"])
def test_in_16_bits_it_is_the_same_model(name: str, make_pruned: Make, tokens_BT: Tensor) -> None:
    """GLM keeps the bias of its choice in 32 bits, in the layers that are built anew as well."""
    pruned = last_layer_cut(make_pruned, name, torch.bfloat16)
    ours, theirs = load_checkpoint(pruned.folder, CPU), remote(pruned.folder)
    assert {n: t.dtype for n, t in ours.state_dict().items()} == {n: t.dtype for n, t in theirs.state_dict().items()}
    # Weights that lie elsewhere in memory may take other kernels, which differ in the last digits.
    torch.testing.assert_close(logits(theirs, tokens_BT), logits(ours, tokens_BT), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "jamba"])
def test_without_the_code_transformers_says_that_the_count_varies(name: str, make_pruned: Make) -> None:
    """Under an alias of the count the guard would not trip, and the trap is a stock model with random experts."""
    pruned = last_layer_cut(make_pruned, name)
    with pytest.raises(AmbiguousGlobalPerLayerAttributeError, match="may vary across layers"):
        AutoModelForCausalLM.from_pretrained(pruned.folder, trust_remote_code=False)


def test_what_is_set_on_the_model_holds_for_the_rebuilt_layers(make_pruned: Make) -> None:
    """Layers built of a copy of the config would keep the copy, and with it their kind of attention."""
    model = remote(last_layer_cut(make_pruned, "mixtral").folder)
    model.set_attn_implementation("eager")
    kinds = [part.config._attn_implementation for part in model.modules() if hasattr(part, "config")]
    assert set(kinds) == {"eager"}


def test_a_model_made_anew_of_the_config_has_weights(make_pruned: Make) -> None:
    """The rebuilt layers are initialized like the others, and not what memory happens to hold."""
    folder = last_layer_cut(make_pruned, "mixtral").folder
    config = AutoConfig.from_pretrained(folder)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=True, dtype=torch.float32)
    assert config.initializer_range == 0.02
    for layer, count in zip(model.model.layers, (6, 6, 4), strict=True):
        assert len(layer.mlp.experts.down_proj) == count
        assert 0.018 < layer.mlp.experts.down_proj.std() < 0.022


def test_transformers_saves_it_back_and_loads_that(make_pruned: Make, tokens_BT: Tensor, tmp_path: Path) -> None:
    model = remote(last_layer_cut(make_pruned, "olmoe").folder)
    model.save_pretrained(tmp_path / "again")
    # Weights that lie elsewhere in memory may take other kernels, which differ in the last digits.
    again = logits(remote(tmp_path / "again"), tokens_BT)
    torch.testing.assert_close(again, logits(model, tokens_BT), rtol=1e-5, atol=1e-5)


def test_config_names_the_code_and_every_count(make_pruned: Make) -> None:
    """A layer without experts is not named; all else in the config stays."""
    pruned = make_pruned("qwen2_moe", {2: FOUR})
    before = json.loads((pruned.folder / "config.json").read_text())
    write_code(Architecture(pruned.folder))
    after = json.loads((pruned.folder / "config.json").read_text())
    assert after.pop("per_layer_config") == {"1": {"num_experts": 6}, "2": {"num_experts": 4}}
    assert after.pop("auto_map") == {"AutoModelForCausalLM": "modeling_stun.PrunedQwen2MoeForCausalLM"}
    assert after == before
    assert "stun_exp" not in (pruned.folder / "modeling_stun.py").read_text()


@pytest.mark.slow
def test_a_fresh_process_loads_it(make_pruned: Make) -> None:
    """Of a family whose stock experts are not of the fused form that we run."""
    pruned = make_pruned("llama4_text", {2: FOUR})
    result = EXPORT.export(pruned)
    assert (result["export"], result["written"], result["num_experts"]) == ("hf_unequal", "checkpoint", [0, 6, 4])
    assert result["loads_with"].endswith("AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)")
    assert 0 <= result["max_logit_difference"] <= result["tolerance"] < 0.1
    assert result["vllm"] == {"verified": False, "because": "vLLM builds every layer for equally many experts"}
    json.dumps(result)


def test_layers_that_turn_out_equal_need_no_code(make_pruned: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def prove(written: Checkpoint, device: torch.device, trust_remote_code: bool, *text: object) -> dict[str, bool]:
        return {"trusted": trust_remote_code}

    monkeypatch.setattr("stun_exp.export.proof.prove", prove)
    pruned = make_pruned("mixtral", dict.fromkeys(range(3), FOUR))
    assert EXPORT.export(pruned)["trusted"] is False
    assert not (pruned.folder / "modeling_stun.py").exists()


@pytest.mark.slow
def test_code_that_fails_is_told_with_its_error(make_pruned: Make) -> None:
    """Here it imports this package, which the fresh process must not have."""
    pruned = last_layer_cut(make_pruned, "mixtral")
    code = pruned.folder / "modeling_stun.py"
    code.write_text("import stun_exp.checkpoint\n" + code.read_text())
    with pytest.raises(ValueError, match=r"checkpoint: a fresh process could not load it by transformers .*stun_exp"):
        prove(Checkpoint(pruned.folder, None), CPU, trust_remote_code=True)


@pytest.mark.parametrize("name", ["dbrx", "deepseek_v3", "mixtral"])
@pytest.mark.parametrize(
    ("form", "reader"), [("per_layer_num_experts", "RCO's patch"), ("expert_list", "STUN's published checkpoints")]
)
def test_other_formats_are_read_back_to_the_same_model(
    name: str, form: Any, reader: str, make_pruned: Make, tokens_BT: Tensor
) -> None:
    """Our own key is gone, so that it is the other that says so; pruned once more, the copy has ours alone."""
    pruned = make_pruned(name, {2: FOUR})
    counts = [layer.num_experts for layer in Architecture(pruned.folder).outlines]
    expected = logits(load_checkpoint(pruned.folder, CPU), tokens_BT)
    unequal = HfUnequalExport(format=form)
    unequal.check(pruned.source, 0.25, True)
    result = unequal.export(pruned)
    assert (result["format"], result["loads_with"], result["num_experts"]) == (form, "stun_exp.load_pruned", counts)
    assert result["max_logit_difference"] == 0
    assert reader in result["for"]
    json.dumps(result)
    config = json.loads((pruned.folder / "config.json").read_text())
    assert "experts_per_layer" not in config
    assert counts in (config.get("per_layer_num_experts"), count_of(config))
    # Weights that lie elsewhere in memory may take other kernels, which differ in the last digits.
    again = logits(stun_exp.load_pruned(pruned.folder), tokens_BT)
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)


def count_of(config: dict[str, Any]) -> Any:
    """What stands in the place of the model's expert count."""
    whole = config | config.get("ffn_config", {})
    return next(whole[key] for key in ("moe_num_experts", "n_routed_experts", "num_local_experts") if key in whole)


@pytest.mark.parametrize("form", ["per_layer_num_experts", "expert_list"])
@pytest.mark.parametrize("name", ["mixtral", "glm4_moe", "qwen3_moe"])
def test_stock_transformers_takes_no_other_format_for_a_model_of_its_own(
    name: str, form: Any, make_pruned: Make
) -> None:
    """The trap is a model of random experts, without an error."""
    pruned = make_pruned(name, {2: FOUR})
    HfUnequalExport(format=form).export(pruned)
    with pytest.raises(Exception, match=r"mismatch|num_local_experts|n_routed_experts|'list' and 'int'"):
        AutoModelForCausalLM.from_pretrained(pruned.folder)


def test_layers_of_two_stacks_have_no_numbers_that_others_know(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=r"export\.format=expert_list: .* an encoder and a decoder; pass export=none"):
        HfUnequalExport(format="expert_list").check(Architecture(tiny_model("nllb-moe")), 0.25, False)


def test_the_package_loads_nothing_heavy_by_itself() -> None:
    program = "import stun_exp, sys; print(callable(stun_exp.load_pruned), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
