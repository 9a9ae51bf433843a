"""The damage of the expert stage, against a stock model's layers run by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from stun_exp.calibration.local import LocalText
from stun_exp.pipeline.damage import Damage, LayerDamage, damage_json, heavy_losses

Runner = Callable[..., dict[str, Any]]
EXPERTS_ALONE = ("unstructured_pruner=none", "sparsity=${expert_pruner.ratio}", "expert_pruner.ratio=0.34")


def routed(x_TD: Tensor, block: Any, kept: list[int], top_k: int = 2) -> Tensor:
    """Mixtral's sum over the experts of each token, one token and one expert at a time, of the `kept` alone."""
    y_TD = torch.zeros_like(x_TD)
    for token, x_D in enumerate(x_TD):
        gates, places = (block.gate.weight[kept] @ x_D).softmax(0).topk(top_k)
        for gate, place in zip(gates / gates.sum(), places, strict=True):
            gate_F, up_F = (block.experts.gate_up_proj[kept[place]] @ x_D).chunk(2)
            y_TD[token] += gate * (block.experts.down_proj[kept[place]] @ (F.silu(gate_F) * up_F))
    return y_TD


@torch.no_grad()
def test_error_and_gates_are_those_of_a_stock_model_run_by_hand(
    runner: Runner, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Every layer on the inputs that it has in the unpruned model."""
    report, folder = runner(*EXPERTS_ALONE), tiny_model("mixtral")
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())["layers"]
    text = LocalText(path=str(tmp_path / "calibration.jsonl"), num_sequences=16, sequence_length=32, batch_size=16)
    (sequences_BT,) = text.tokens(AutoTokenizer.from_pretrained(folder), seed=0).batches_BT
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    blocks = [layer.mlp for layer in model.model.layers]
    inputs: dict[int, Tensor] = {}
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda module, args, n=number: inputs.update({n: args[0].flatten(0, 1)}))
    model(sequences_BT)
    every = list(range(6))
    for number, block in enumerate(blocks):
        x_TD, kept = inputs[number], plan[number]["kept"]
        full_TD, left_TD = routed(x_TD, block, every), routed(x_TD, block, kept)
        found = report["expert_stage"]["per_layer"][number]
        error = float((left_TD - full_TD).norm() / full_TD.norm())
        assert found["reconstruction_error"] == pytest.approx(error, rel=1e-4)
        gates_TK, index_TK = (x_TD @ block.gate.weight.T).softmax(-1).topk(2)
        gates_TK = gates_TK / gates_TK.sum(1, keepdim=True)
        gone = ~torch.isin(index_TK, torch.tensor(kept))
        assert found["gate_mass_moved"] == pytest.approx(float(gates_TK[gone].sum() / gates_TK.sum()), rel=1e-4)
        load_E = index_TK.flatten().bincount(minlength=6).double()
        share_E = load_E / load_E.sum()
        redundancy = report["redundancy"]["per_layer"][number]
        effective = float((-share_E * share_E.log()).nansum().exp())
        assert redundancy["effective_experts"] == pytest.approx(effective, rel=1e-4)


@pytest.mark.parametrize("family", ["arctic", "deepseek_v3", "gpt_oss", "qwen3_moe", "llama4_text"])
def test_every_kind_of_router_is_measured(runner: Runner, family: str) -> None:
    report = runner(*EXPERTS_ALONE, family=family)
    losing = [layer for layer in report["expert_stage"]["per_layer"] if layer["kept"] < layer["num_experts"]]
    assert losing
    for layer in losing:
        assert layer["reconstruction_error"] > 0
        assert 0 <= layer["gate_mass_moved"] <= 1


def test_merged_experts_are_measured_as_they_have_become(runner: Runner) -> None:
    report = runner(*EXPERTS_ALONE, "expert_pruner=hc_smoe")
    assert 0 < report["expert_stage"]["reconstruction_error"] < 2


def test_layers_in_files_are_measured_alike(runner: Runner, tmp_path: Path) -> None:
    in_memory = runner(*EXPERTS_ALONE, out=tmp_path / "a")
    in_files = runner(*EXPERTS_ALONE, "stream=out_of_core", out=tmp_path / "b")
    assert in_files["expert_stage"] == in_memory["expert_stage"]
    assert in_files["redundancy"] == in_memory["redundancy"]


def test_nothing_is_measured_where_no_expert_goes_or_nobody_asks(runner: Runner, tmp_path: Path) -> None:
    assert runner("expert_pruner=none", out=tmp_path / "a")["redundancy"] is None
    off = runner(*EXPERTS_ALONE, "measure_damage=false", out=tmp_path / "b")
    assert off["redundancy"] is None
    assert off["expert_stage"]["reconstruction_error"] is None
    assert off["cost"]["damage"]["forward_passes"] == 0


def test_equal_plans_are_measured_once(runner: Runner, tmp_path: Path) -> None:
    """Every layer has a cluster at least, so kappa 0 and 1 are one plan."""
    cache = ("cache=folder", f"cache.path={tmp_path / 'cache'}")
    first = runner(*EXPERTS_ALONE, *cache, "expert_pruner.kappa=0", out=tmp_path / "a")
    second = runner(*EXPERTS_ALONE, *cache, "expert_pruner.kappa=1", out=tmp_path / "b")
    assert second["expert_stage"] == first["expert_stage"]
    costs = [report["cost"]["damage"] for report in (first, second)]
    assert costs[1]["wall_seconds"] < costs[1]["charged_seconds"]
    assert costs[1]["forward_passes"] == costs[0]["forward_passes"] > 0


def test_means_over_layers_by_hand() -> None:
    """Errors 3 of 25 and 1 of 75 in squares: sqrt(4 / 100), not the mean of both; gates 10 % and 40 %."""
    found = damage_json(Damage(7, [LayerDamage(0, 3.0, 25.0, 0.1), LayerDamage(2, 1.0, 75.0, 0.4)], []))
    assert found["reconstruction_error"] == pytest.approx(0.2)
    assert found["gate_mass_moved"] == pytest.approx(0.25)
    assert found["per_layer"][2] == {"reconstruction_error": pytest.approx((1 / 75) ** 0.5), "gate_mass_moved": 0.4}


def test_what_is_not_finite_is_unknown() -> None:
    found = damage_json(Damage(7, [LayerDamage(0, None, None, None), LayerDamage(1, 1.0, 4.0, 0.4)], []))
    assert found["reconstruction_error"] is None
    assert found["per_layer"][1]["reconstruction_error"] == 0.5


def test_a_layer_that_loses_over_a_quarter_of_its_gates_is_named() -> None:
    assert heavy_losses([LayerDamage(0, 1.0, 1.0, 0.25), LayerDamage(1, 1.0, 1.0, None)]) == []
    (warning,) = heavy_losses([LayerDamage(0, 1.0, 1.0, 0.2), LayerDamage(3, 1.0, 1.0, 0.31)])
    assert warning.startswith("layer 3 (31 %): ")
