"""The model card says what was done, what is left, and how the folder is loaded."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from stun_exp.pipeline.model_card import command_of, model_card


def report(after: list[int], zeros: int) -> dict[str, Any]:
    settings = {
        "expert_pruner": {"_target_": "stun_exp.expert_pruner.stun.stun.STUN", "ratio": 0.25},
        "allocation": {"_target_": "stun_exp.allocation.owl.OWL", "lamda": 0.05},
        "unstructured_pruner": {"_target_": "stun_exp.unstructured_pruner.wanda.Wanda", "group": "row"},
        "recovery": {"_target_": "stun_exp.recovery.none.NoRecovery"},
    }
    layers = [{"weights_in_scope": 1000, "removed": 200, "zeros": zeros} for _ in after]
    return {
        "name": "stun-owl-wanda",
        "settings": settings,
        "model": {"source": "owner/model", "model_type": "mixtral", "params_before": 5000, "params_after": 4000},
        "experts": {"before": [8] * len(after), "after": after},
        "sparsity": {"target": 0.4, "achieved": 0.4004, "scope": "decoder", "per_layer": layers},
    }


def test_method_budget_sparsity_and_command() -> None:
    card = model_card(report([6, 6], 200), "stun sparsity=0.4")
    header = yaml.safe_load(card.split("---")[1])
    assert header == {"library_name": "transformers", "tags": ["mixture-of-experts", "pruned"]}
    assert "# stun-owl-wanda\n" in card
    assert "`owner/model` (mixtral)" in card
    assert "| experts | stun (ratio=0.25) |" in card
    assert "| weights | wanda (group=row) |" in card
    assert "| training afterwards | none |" in card
    assert "| budget | 40.00% of the weights in scope (decoder) |" in card
    assert "| measured sparsity | 40.04% of" in card
    assert "| experts | 12 of 16 are left |" in card
    assert "| parameters | 4,000 of 5,000 are stored |" in card
    assert "```bash\nstun sparsity=0.4\n```" in card


def test_zeros_are_said_to_save_no_memory_where_there_are_any() -> None:
    assert "400 of the 1,600 stored weights in scope are zeros" in model_card(report([6, 6], 200), None)
    assert "save no memory" in model_card(report([6, 6], 200), None)
    assert "zeros are" not in model_card(report([6, 6], 0), None)


@pytest.mark.parametrize(
    ("after", "loads"), [([6, 6], "stock transformers loads"), ([7, 5], "stun_exp.load_pruned` loads")]
)
def test_what_loads_it(after: list[int], loads: str) -> None:
    card = model_card(report(after, 0), None)
    assert f"2 layers that have any (8 before): {after[0]} {after[1]}." in card
    assert loads in card


def test_the_command_is_what_hydra_noted(tmp_path: Path) -> None:
    assert command_of(tmp_path) is None
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/overrides.yaml").write_text("- sparsity=0.5\n- name=a b\n")
    assert command_of(tmp_path) == "stun sparsity=0.5 'name=a b'"
