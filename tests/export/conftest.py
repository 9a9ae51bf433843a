"""Checkpoints as a run leaves them to an export."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.export.protocol import Pruned
from stun_exp.moe.plan import Plan, keep, retained_experts

Make = Callable[..., Pruned]
"""(family or folder, layer -> kept experts, zeros=, dtype=): a pruned tiny model; layers not named keep all."""


@pytest.fixture
def make_pruned(tiny_model: Callable[[str], Path], tmp_path: Path) -> Make:
    def make(
        family: str | Path, kept: dict[int, list[int]], zeros: bool = False, dtype: torch.dtype | None = None
    ) -> Pruned:
        source = Checkpoint(family if isinstance(family, Path) else tiny_model(family), dtype)
        plan = Plan(
            [
                keep(layer.index, layer.num_experts, kept.get(layer.index, range(layer.num_experts)))
                for layer in source.outlines
                if layer.is_moe
            ]
        )
        writer = CheckpointWriter(source, tmp_path / "checkpoint")
        for index in range(source.num_layers):
            layer = source.read_layer(index)
            layer_plan = plan.of(index)
            if layer_plan is not None:
                layer.apply(layer_plan)
            for matrix in layer.matrices():
                if zeros:
                    matrix.weight_OC[:, ::2] = 0
            writer.write_layer(layer)
        writer.finish()
        profile = tmp_path / "retained_experts.json"
        profile.write_text(json.dumps(retained_experts(plan, source.config.model_type)))
        return Pruned(
            source=source,
            plan=plan,
            folder=writer.path,
            writer=writer,
            profile=profile,
            weights_pruned=zeros,
            recovered=False,
            device=torch.device("cpu"),
        )

    return make
