"""The second stage alone, on a checkpoint as it is, by a pruner that remembers what it was given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from stun_exp.allocation.ratios import LayerRatios
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.cli.main import CONF
from stun_exp.moe.layers import Matrix, MoELayer
from stun_exp.pipeline.budget import Scope
from stun_exp.pipeline.prune import Pruning, prune_layers
from stun_exp.pipeline.prune_layer import PrunedLayer
from stun_exp.pipeline.weight_stage import WeightStage
from stun_exp.streaming.walk import Walk
from stun_exp.unstructured_pruner.magnitude import Magnitude
from stun_exp.unstructured_pruner.masks import SquaredNorm
from stun_exp.unstructured_pruner.moe_pruner import MoEPruner
from stun_exp.unstructured_pruner.protocol import Inputs, Starved, Task, UnstructuredPruner
from stun_exp.unstructured_pruner.wanda import Wanda

COMPONENTS = {"wanda": Wanda, "moe_pruner": MoEPruner, "magnitude": Magnitude}


@pytest.fixture
def component() -> Callable[..., Any]:
    """(name, settings) -> the pruner of that name with the settings of conf/ but for those given."""

    def make(name: str, **settings: Any) -> Any:
        config = yaml.safe_load((CONF / f"unstructured_pruner/{name}.yaml").read_text())
        return COMPONENTS[name](**{key: value for key, value in config.items() if key != "_target_"} | settings)

    return make


class Recorder:
    """Wanda that takes experts in portions if asked, and keeps what it was given."""

    prunes = True
    attention = True
    pattern = "unstructured"

    def __init__(
        self,
        wanda: Wanda,
        inputs: Inputs = "pruned",
        min_tokens: int = 1,
        starved: Starved = "every_token",
        experts_at_once: int | None = None,
    ):
        self.wanda = wanda
        self.inputs: Inputs = inputs
        self.min_tokens = min_tokens
        self.starved: Starved = starved
        self.experts_at_once = experts_at_once
        self.layers: list[dict[str, Task]] = []
        self.calls: list[list[str]] = []

    def statistic(self, num_inputs: int) -> SquaredNorm:
        return self.wanda.statistic(num_inputs)

    def saliency(self, weight_OC: Tensor, statistic: Any, per_token: bool = False) -> Tensor:
        return self.wanda.saliency(weight_OC, statistic, per_token)

    def next_layer(self, layer: MoELayer) -> None:
        self.layers.append({})

    def prune_(self, tasks: Sequence[Task]) -> list[str]:
        self.calls += [[task.name for task in tasks]] if tasks else []
        self.layers[-1] |= {task.name: task for task in tasks}
        return self.wanda.prune_(tasks)


@pytest.fixture
def recorder(component: Callable[..., Any]) -> Callable[..., Recorder]:
    def make(**settings: Any) -> Recorder:
        return Recorder(component("wanda"), **settings)

    return make


@dataclass(frozen=True)
class Result:
    """What the stage left, and what it cost."""

    source: Checkpoint
    written: Checkpoint
    layers: list[PrunedLayer]
    passes: float

    def matrices(self, index: int, expert: int | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> weights of a layer before and after; of one expert if given."""

        def of(checkpoint: Checkpoint) -> list[Matrix]:
            return [m for m in checkpoint.read_layer(index).matrices() if expert is None or m.expert == expert]

        pairs = zip(of(self.source), of(self.written), strict=True)
        return {before.name: (before.weight_OC, after.weight_OC) for before, after in pairs}

    def zeros(self, index: int, expert: int | None = None) -> int:
        return sum(int((after == 0).sum()) for _, after in self.matrices(index, expert).values())

    def size(self, index: int, expert: int | None = None) -> int:
        return sum(after.numel() for _, after in self.matrices(index, expert).values())


@pytest.fixture
def prune(tokens_BT: Tensor, tmp_path: Path) -> Callable[..., Result]:
    """(checkpoint, pruner, ratio or ratios of each layer, scope) -> what the stage makes of it."""

    def go(
        source: Checkpoint,
        pruner: UnstructuredPruner,
        ratio: float | Sequence[LayerRatios] = 0.5,
        scope: Scope = "decoder",
    ) -> Result:
        out = tmp_path / f"pruned{len(list(tmp_path.iterdir()))}"
        stage = WeightStage(pruner, scope)
        edit = getattr(pruner, "next_layer", lambda layer: None)
        walk = Walk(source, list(tokens_BT.split(3)), torch.device("cpu"), "test", runs=stage.needs_data)
        walk.edit = edit
        ratios = [LayerRatios(ratio)] * source.num_layers if isinstance(ratio, float) else ratio
        layers = prune_layers([Pruning(stage, ratios, walk, CheckpointWriter(source, out))])[0].layers
        return Result(source, Checkpoint(out, None), layers, walk.forward_passes)

    return go
