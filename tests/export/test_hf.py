"""A checkpoint for stock transformers: refused if it cannot be, proven by a process that has nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from stun_exp.checkpoint.architecture import Architecture
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.export.hf import HfExport
from stun_exp.export.proof import prove
from stun_exp.export.protocol import Pruned
from stun_exp.moe.families import FAMILIES
from stun_exp.moe.plan import Plan, keep

Make = Callable[..., Pruned]
FOUR = [0, 2, 3, 5]
"""Two of each group of three, for the routers that choose among groups."""


@pytest.fixture
def nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that reaches its proof fails."""

    def too_late(*args: Any, **kwargs: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("stun_exp.export.proof.prove", too_late)


def set_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize("name", FAMILIES)
def test_only_what_stock_transformers_runs_rightly_passes(name: str, tiny_model: Callable[[str], Path]) -> None:
    """It has no Arctic, and routes NLLB-MoE wrongly; both are known from config.json alone."""
    source = Architecture(tiny_model(name))
    wrong = {"arctic": "has no ArcticForCausalLM; pass export=none", "nllb-moe": "not those that its router chose"}
    if name in wrong:
        with pytest.raises(ValueError, match=wrong[name]):
            HfExport(vllm_python=None).check(source, 0.0, True)
    else:
        HfExport(vllm_python=None).check(source, 0.0, True)


def test_a_config_that_does_not_name_its_class_is_refused(mixtral_copy: Path) -> None:
    """transformers goes by model_type and would load it; vLLM and SGLang would not."""
    set_config(mixtral_copy, architectures=None)
    with pytest.raises(ValueError, match=r'no architectures.* add "architectures": \["MixtralForCausalLM"\]'):
        HfExport(vllm_python=None).check(Architecture(mixtral_copy), 0.0, True)


def test_what_the_named_vllm_does_not_serve_is_refused_before_pruning(
    vllm_python: str, tiny_model: Callable[[str], Path]
) -> None:
    """The stand-in has Mixtral, and not OLMoE, which transformers would prove."""
    HfExport(vllm_python=vllm_python).check(Architecture(tiny_model("mixtral")), 0.0, True)
    with pytest.raises(ValueError, match=r"export=hf: vLLM 0.32.0 has no OlmoeForCausalLM; pass export.vllm"):
        HfExport(vllm_python=vllm_python).check(Architecture(tiny_model("olmoe")), 0.0, True)
    with pytest.raises(ValueError, match=r"export.vllm_python=missing: no such file"):
        HfExport(vllm_python="missing").check(Architecture(tiny_model("mixtral")), 0.0, True)


@pytest.mark.slow
def test_a_run_proves_what_it_exports_in_vllm_on_its_own_text(vllm_python: str, runner: Any, tmp_path: Path) -> None:
    overrides = ("method=reap", "expert_pruner.ratio=0.5", "sparsity=0.5", "sparsity_scope=experts", "export=hf")
    report = runner(*overrides, f"export.vllm_python={vllm_python}", out=tmp_path / "pruned")
    found = report["export"]["vllm"]
    assert (found["verified"], found["version"]) == (True, "0.32.0")
    assert found["mean_logprob_difference"] <= found["tolerance"]
    assert report["export"]["tokens"] == 4 * 32  # the sequences of the calibration are shorter than the proof's


def test_a_ratio_that_cannot_be_shared_equally_is_refused_with_the_nearest(mixtral: Checkpoint) -> None:
    """3 layers of 6: a quarter leaves 14 (4.5 rounds down to 4), and 15 = 3 * 5 are left by a sixth."""
    with pytest.raises(
        ValueError, match=r"leaves 14 experts, which 3 layers cannot share.*ratio=0.1667, or export=hf_"
    ):
        HfExport(vllm_python=None).check(mixtral, 0.25, True)
    HfExport(vllm_python=None).check(mixtral, 0.1667, True)


def test_the_nearest_ratio_asks_of_no_layer_what_it_does_not_have(make_pruned: Make) -> None:
    """6, 4 and 6 experts: 16 / 3 is nearest to 5, but only 4 can be kept in each, 12 of 16."""
    with pytest.raises(ValueError, match=r"leaves 16 experts, .*ratio=0\.25,"):
        HfExport(vllm_python=None).check(Architecture(make_pruned("mixtral", {1: FOUR}).folder), 0.0, True)


def test_a_group_limited_router_is_not_held_to_the_exact_ratio(tiny_model: Callable[[str], Path]) -> None:
    """2 layers of 2 groups: a quarter of 12 leaves 9, but groups lose equally many, so 4 and 4 may well remain."""
    HfExport(vllm_python=None).check(Architecture(tiny_model("deepseek_v3")), 0.25, True)


def test_a_plan_of_unequal_layers_is_refused_by_their_names(mixtral: Checkpoint) -> None:
    plan = Plan([keep(0, 6, FOUR), keep(1, 6, [0, 1, 2]), keep(2, 6, FOUR)])
    with pytest.raises(ValueError, match=r"layer 1 keeps 3 experts and layer 0 keeps 4;.*pass export=hf_unequal"):
        HfExport(vllm_python=None).check_plan(mixtral, plan)


@pytest.mark.parametrize(
    ("family", "kept", "said"),
    [
        ("mixtral", [0], r"layer 0 keeps 1 experts, and its router needs 2 \(top_k=2\)"),
        ("deepseek_v3", [0, 1, 2], r"layer 1 keeps 3 experts, and its router needs 4 \(top_k=2\)"),
        ("deepseek_v3", [0, 1, 2, 3, 4], "layer 1 keeps 5 experts, and its router chooses among 2 equal groups"),
    ],
)
def test_a_plan_that_the_router_cannot_work_with_is_refused(
    family: str, kept: list[int], said: str, tiny_model: Callable[[str], Path]
) -> None:
    source = Architecture(tiny_model(family))
    plan = Plan([keep(layer.index, 6, kept) for layer in source.outlines if layer.is_moe])
    with pytest.raises(ValueError, match=said):
        HfExport(vllm_python=None).check_plan(source, plan)


@pytest.mark.usefixtures("nothing_is_run")
def test_what_was_written_is_checked_before_anything_is_loaded(make_pruned: Make) -> None:
    """A router that wants more experts than there are crashes deep inside top-k."""
    pruned = make_pruned("mixtral", dict.fromkeys(range(3), FOUR))
    set_config(pruned.folder, num_experts_per_tok=5)
    with pytest.raises(ValueError, match=r"layer 0: the router chooses 5 experts a token \(top_k\) of 4"):
        HfExport(vllm_python=None).export(pruned)


@pytest.mark.usefixtures("nothing_is_run")
def test_unequal_layers_on_disk_are_refused(make_pruned: Make) -> None:
    with pytest.raises(ValueError, match="layer 1 keeps 4 experts and layer 0 keeps 6"):
        HfExport(vllm_python=None).export(make_pruned("mixtral", {1: FOUR}))


@pytest.mark.slow
def test_equal_layers_load_in_a_fresh_process(make_pruned: Make) -> None:
    pruned = make_pruned("qwen2_moe", dict.fromkeys((1, 2), FOUR), zeros=True)
    before = {file.name: file.read_bytes() for file in pruned.folder.iterdir()}
    assert before
    result = HfExport(vllm_python=None).export(pruned)
    assert (result["export"], result["written"], result["num_experts"]) == ("hf", "checkpoint", 4)
    assert result["expert_parallel_sizes"] == [1, 2, 4]
    assert result["loads_with"].endswith("AutoModelForCausalLM.from_pretrained(DIR)")
    assert 0 <= result["max_logit_difference"] <= result["tolerance"] < 0.1
    assert result["vllm"] == {"verified": False, "because": "no vLLM was named (export.vllm_python)"}
    assert result["notes"] == []
    json.dumps(result)
    assert {file.name: file.read_bytes() for file in pruned.folder.iterdir()} == before


def test_zeros_alone_are_said_to_save_nothing(make_pruned: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stun_exp.export.proof.prove", lambda *args, **kwargs: {})
    (note,) = HfExport(vllm_python=None).export(make_pruned("mixtral", {}, zeros=True))["notes"]
    assert "as much disk and memory as the unpruned one" in note


def test_a_model_that_was_not_pruned_has_nothing_to_say(make_pruned: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stun_exp.export.proof.prove", lambda *args, **kwargs: {})
    assert HfExport(vllm_python=None).export(make_pruned("mixtral", {}))["notes"] == []


@pytest.mark.slow
def test_a_reader_that_computes_something_else_is_named(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """NLLB-MoE, had it come so far: it loads without a word, and transformers 5.23 runs the wrong experts."""
    folder = Path(copytree(tiny_model("nllb-moe"), tmp_path / "copy"))
    written = Checkpoint(folder, None)
    with pytest.raises(
        ValueError, match=r"copy, read by transformers 5.*Seq2SeqLM.*, is not the pruned model in memory"
    ):
        prove(written, torch.device("cpu"), trust_remote_code=False)
