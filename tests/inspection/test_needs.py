"""The estimate of a run: by hand, and against what real runs then did."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from stun_exp.checkpoint.architecture import Architecture
from stun_exp.config.build import build
from stun_exp.config.settings import specs_of
from stun_exp.inspection.needs import needs_of, stages_of
from stun_exp.inspection.sizes import inspect_architecture
from stun_exp.pipeline.run import run

Published = Callable[..., Path]


def test_mixtral_on_c4_by_hand(published: Published, settings: Callable[..., Any]) -> None:
    """128 sequences of 2,048 tokens; STUN looks at routers alone, OWL runs the model once and Wanda twice.

    The damage of the expert stage is measured on 8 sequences, with all experts and with those that stay.
    """
    asked = settings(published(), "calibration=c4")
    found = inspect_architecture(asked.model.architecture())
    needs = needs_of(found, asked)
    layer = 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 8 * 3 * 4096 * 14336 + 8 * 4096 + 2 * 4096)
    assert needs.num_tokens == 128 * 2048
    assert needs.layer_bytes == 2 * layer
    assert needs.hidden_bytes == 2 * 2 * 128 * 2048 * 4096
    assert needs.pruning_bytes == needs.layer_bytes + needs.hidden_bytes
    assert needs.evaluation_bytes == needs.written_bytes == 93_405_585_408
    assert [(stage.moves, stage.passes) for stage in needs.stages.values()] == [
        (0, 0.0),
        (1, 0.0),
        (1, 2 / 16),
        (1, 1.0),
        (2, 2.0),
        (2, 0.0),
        (0, 0.0),
        (1, 0.0),
    ]
    assert needs.disk_seconds == pytest.approx(8 * 93.4, rel=1e-3)
    # Mixtral's 12.9 billion active parameters, less embeddings and head
    assert needs.compute_seconds == pytest.approx((3 + 1 / 8) * 2 * 128 * 2048 * 12.62e9 / needs.compute_rate, rel=1e-3)
    assert needs.seconds == needs.disk_seconds + needs.compute_seconds


def test_the_settings_of_the_same_command_line_count(published: Published, settings: Callable[..., Any]) -> None:
    folder = published()

    def needs(*overrides: str) -> Any:
        asked = settings(folder, "calibration=c4", *overrides)
        return needs_of(inspect_architecture(asked.model.architecture()), asked)

    plain = needs()
    assert needs("calibration.num_sequences=64").hidden_bytes == plain.hidden_bytes / 2
    assert needs("model.dtype=float32").layer_bytes == 2 * plain.layer_bytes
    packed = needs("model.load=nf4")
    assert packed.evaluation_bytes < 0.3 * plain.evaluation_bytes
    assert packed.written_bytes == plain.written_bytes  # what is written is in 16 bits
    assert needs("unstructured_pruner=magnitude", "measure_damage=false").compute_seconds == 0
    assert needs("unstructured_pruner=none", "sparsity=0.2").stages["prune"].passes == 0
    assert needs("allocation=uniform").disk_seconds < plain.disk_seconds


def test_a_large_vocabulary_may_need_more_than_two_layers(
    tiny_model: Callable[[str], Path], settings: Callable[..., Any]
) -> None:
    asked = settings(tiny_model("mixtral"))
    found = inspect_architecture(asked.model.architecture())
    embeddings = 2 * 64 * 16 + 16
    assert found.outside == embeddings
    assert needs_of(found, asked).layer_bytes == 2 * found.largest.all.parameters * 4 > embeddings * 4


RUNS = {
    "the defaults": [],
    "statistics of experts": ["expert_pruner.lambda2=1"],
    "scores": ["expert_pruner=reap", "allocation=uniform"],
    "every expert on every token": ["expert_pruner=subset_search", "expert_pruner.ratio=0.3"],
    "behind pruned layers": ["expert_pruner=greedy_reconstruction", "expert_pruner.progressive=true"],
    "a few experts at once": ["unstructured_pruner=sparsegpt", "unstructured_pruner.experts_at_once=4"],
    "inputs of the dense model": ["unstructured_pruner.inputs=dense"],
    "weights alone": ["unstructured_pruner=magnitude"],
    "experts alone": [
        "expert_pruner.ratio=0.33",
        "unstructured_pruner=none",
        "sparsity=0.33",
        "sparsity_scope=experts",
    ],
    "skipping": ["skipping=dynamic"],
}


@pytest.mark.parametrize("what", RUNS)
def test_a_run_makes_the_passes_that_were_foretold(
    what: str, tiny_model: Callable[[str], Path], composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """Exactly, but that the last of the three layers is not run again when its experts went, and that fewer experts may
    need fewer portions."""
    text = tmp_path / "calibration.jsonl"
    rows = torch.randint(0, 64, (16, 40), generator=torch.Generator().manual_seed(0)).tolist()
    text.write_text("\n".join(json.dumps({"input_ids": row}) for row in rows))
    calibration = [f"calibration.path={text}", "calibration.sequence_length=32", "calibration.num_sequences=8"]
    base = ["calibration=local", *calibration, "eval=none", "sparsity=0.5", "cache=none"]
    cfg = composed(tiny_model("mixtral"), *base, *RUNS[what])
    asked, config = build(cfg), OmegaConf.to_container(cfg, resolve=True)
    foretold = stages_of(inspect_architecture(Architecture(tiny_model("mixtral"))), asked)
    out = tmp_path / "run"
    out.mkdir()
    assert isinstance(config, dict)
    run(specs_of(asked, {str(key): value for key, value in config.items()}, out))
    cost = json.loads((out / "report.json").read_text())["cost"]
    fewer = {"behind pruned layers": ("experts", 1 / 3), "a few experts at once": ("prune", 1 / 3)}.get(what, ("", 0.0))
    for stage in ("experts", "allocate", "prune", "skip"):
        passes = foretold[stage].passes - (fewer[1] if stage == fewer[0] else 0)
        assert cost[stage]["forward_passes"] == pytest.approx(passes), stage


def test_a_dense_model_has_a_structured_stage_and_no_experts(
    tiny_model: Callable[[str], Path], settings: Callable[..., Any]
) -> None:
    """Once through the model to decide, once to cut, and what is cut is written; a pass where data is wanted."""
    for pruner, needs in (("none", (0, 0.0)), ("neurons", (3, 1.0)), ("layers", (3, 1.0))):
        asked = settings(tiny_model("llama"), f"structured_pruner={pruner}", "expert_pruner=none", "calibration=toy")
        stages = needs_of(inspect_architecture(asked.model.architecture()), asked).stages
        assert (stages["structure"].moves, stages["structure"].passes) == needs
        assert (stages["experts"].moves, stages["experts"].passes) == (0, 0.0)
