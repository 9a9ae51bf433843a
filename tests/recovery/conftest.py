"""Tiny models pruned on disk, to be trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.moe.plan import LayerPlan, Plan
from stun_exp.pipeline.recover import PrunedOnDisk
from stun_exp.recovery.expert_distillation import ExpertDistillation

ROOT = Path(__file__).parents[2]


class OnDisk(PrunedOnDisk):
    """What a recovery gets, and what it warned of."""

    def __init__(self, source: Checkpoint, plan: Plan, out: Path):
        self.warnings: list[str] = []
        sequences_NT = torch.randint(0, 64, (12, 16), generator=torch.Generator().manual_seed(5))
        super().__init__(source, plan, out, torch.device("cpu"), sequences_NT, 0, self.warnings.append)

    def weights(self) -> dict[str, Tensor]:
        """Every tensor of the checkpoint, by key."""
        files = sorted(self.path.glob("*.safetensors"))
        assert files
        return {key: tensor for file in files for key, tensor in load_file(file).items()}


Prune = Callable[..., OnDisk]


@pytest.fixture
def prune(tmp_path: Path) -> Prune:
    """(source, ratio, layer -> groups) -> the copy without the lowest weights, in tmp_path/NAME."""

    def make(
        source: Checkpoint, ratio: float = 0.5, groups: dict[int, list[list[int]]] | None = None, name: str = "out"
    ) -> OnDisk:
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        writer = CheckpointWriter(source, out / "checkpoint")
        plans = []
        for index in range(source.num_layers):
            layer = source.read_layer(index)
            if layer.is_moe:
                of_layer = (groups or {}).get(index, [[expert] for expert in range(layer.num_experts)])
                # A group's last member stands for it.
                plan = LayerPlan(index, layer.num_experts, of_layer, [group[-1] for group in of_layer])
                plans.append(plan)
                layer.apply(plan)
            for matrix in layer.matrices():
                magnitude = matrix.weight_OC.abs().float()
                matrix.weight_OC.masked_fill_(magnitude < magnitude.quantile(ratio), 0)
            writer.write_layer(layer)
        writer.finish()
        return OnDisk(source, Plan(plans), out)

    return make


@pytest.fixture
def distillation() -> Callable[..., ExpertDistillation]:
    """The component with the settings of conf/, but short and quick, and those given."""
    config = yaml.safe_load((ROOT / "conf/recovery/expert_distillation.yaml").read_text())
    del config["_target_"]
    config |= {"epochs": 2, "learning_rate": 1e-3, "batch_size": 4, "num_sequences": 12}

    def make(**settings: Any) -> ExpertDistillation:
        return ExpertDistillation(**config | settings)

    return make
