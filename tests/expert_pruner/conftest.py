"""Layers given as tensors, and plans made for them without a model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.protocol import ExpertPruner
from stun_exp.moe.observe import Statistic
from stun_exp.moe.plan import Plan
from stun_exp.pipeline.experts import even_counts, plan_experts
from stun_exp.state.cache import NoCache, Store
from stun_exp.state.statistics_cache import StatisticsCache
from stun_exp.streaming.walk import Walk

NOTHING_KNOWN = StatisticsCache(Store(NoCache(), pytest.fail), {})


@dataclass
class LayerOfTensors:
    """A layer's router and experts (an `ExpertSource`)."""

    index: int
    rows_ED: Tensor
    weights_EP: Tensor | None = None
    top_k: int = 1
    num_groups: int = 1
    renormalizes: bool = True

    @property
    def num_experts(self) -> int:
        return len(self.rows_ED)

    @property
    def min_experts(self) -> int:
        return max(self.top_k, self.num_groups)

    def router_rows_ED(self) -> Tensor:
        return self.rows_ED

    def expert_weights(self, experts: Sequence[int]) -> Iterator[Tensor]:
        assert self.weights_EP is not None, "the experts' weights were not to be read"
        yield from torch.split(self.weights_EP[list(experts)], 1, dim=1)


@pytest.fixture
def source() -> type[LayerOfTensors]:
    return LayerOfTensors


@pytest.fixture
def planned() -> Callable[..., Plan]:
    """(pruner, layers, statistics of each layer) -> plan, as the stage makes it."""

    def plan(
        pruner: ExpertPruner, layers: Sequence[LayerOfTensors], statistics: Sequence[list[Statistic]] | None = None
    ) -> Plan:
        kept = even_counts(layers, getattr(pruner, "ratio", 0.0))
        gathered = statistics or [[] for _ in layers]
        return pruner.plan([pruner.examine(*each) for each in zip(layers, gathered, kept, strict=True)])

    return plan


@pytest.fixture
def plan_and_passes() -> Callable[..., tuple[Plan, float]]:
    """(checkpoint, pruner, batches) -> plan, and the forward passes that it took."""

    def plan(checkpoint: Checkpoint, pruner: ExpertPruner, batches_BT: list[Tensor]) -> tuple[Plan, float]:
        walks = [Walk(checkpoint, batches_BT, torch.device("cpu"), what) for what in ("test", "full model")]
        return plan_experts(checkpoint, pruner, *walks, NOTHING_KNOWN), sum(walk.forward_passes for walk in walks)

    return plan
