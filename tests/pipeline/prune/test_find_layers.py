"""Layers that an earlier start has written are found as they were recorded, or are to be pruned again."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.shards import Shard
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.pipeline.diagnostics import Moments, Weights
from stun_exp.pipeline.layer_diagnostics import Seen
from stun_exp.pipeline.prune import FinishedLayer, find_layers
from stun_exp.pipeline.prune_layer import PrunedLayer
from stun_exp.pipeline.recover import Recovered, find_recovered
from stun_exp.state.costs import StageCost
from stun_exp.state.journal import Journal


def layer(number: int, shard: Shard) -> FinishedLayer:
    weights = {"before": [Weights(Moments(3, 0.1, 0.2, math.inf, 0.4), 7)]}
    return FinishedLayer(number, shard, PrunedLayer(0.5, [3, 0], [1], ["w"]), Seen(weights, [{"error": 0.1}]))


@pytest.fixture
def written(mixtral: Checkpoint, tmp_path: Path) -> CheckpointWriter:
    writer = CheckpointWriter(mixtral, tmp_path / "checkpoint")
    for index in range(mixtral.num_layers):
        writer.write_layer(mixtral.read_layer(index))
    writer.finish()
    return writer


@pytest.fixture
def journal(written: CheckpointWriter, tmp_path: Path) -> Journal:
    """One in which the three layers are recorded."""
    journal = Journal(tmp_path, {}, anew=False)
    for number in range(3):
        journal.add("prune", "x", layer(number, written.shards[number]), StageCost(1.0, 2.0, forward_passes=0.25))
    return journal


class Run(SimpleNamespace):
    """What is asked of a run here."""

    def __init__(self, out: Path):
        self.costs, self.warnings = list[tuple[str, StageCost]](), list[str]()
        self.out, self.journal = out, Journal(out, {}, anew=False)

    def fingerprint(self, stage: str) -> str:
        return "x"

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def charge_earlier(self, stage: str, cost: StageCost) -> None:
        self.costs.append((stage, cost))


def test_layers_that_lie_there_are_found_with_their_costs(
    journal: Journal, written: CheckpointWriter, tmp_path: Path
) -> None:
    """What lies outside the layers is no layer: it is written again."""
    run: Any = Run(tmp_path)
    found = find_layers(run, None)
    assert found.pruned == {number: layer(0, written.shards[0]).pruned for number in range(3)}
    assert found.seen == {number: layer(0, written.shards[0]).seen for number in range(3)}
    assert found.shards == {number: written.shards[number] for number in range(3)}
    assert run.costs == [("prune", StageCost(1.0, 2.0, forward_passes=0.25))] * 3
    assert not run.warnings


def test_the_last_record_of_a_layer_counts(journal: Journal, written: CheckpointWriter, tmp_path: Path) -> None:
    """Of a layer that was written twice, with other weights the second time."""
    layer_1 = written.source.read_layer(1)
    layer_1.module.self_attn.q_proj.weight.zero_()
    shard = written.write_layer(layer_1)
    run: Any = Run(tmp_path)
    assert find_layers(run, None).shards.keys() == {0, 2}
    assert run.warnings == [
        f"{written.path}: layer 1 was finished, but the file is not as it was written; it is pruned again"
    ]
    journal.add("prune", "x", layer(1, shard), StageCost())
    again: Any = Run(tmp_path)
    assert find_layers(again, None).shards[1] == shard
    assert not again.warnings


def test_after_a_recovery_all_shards_are_its_own_or_none(
    journal: Journal, written: CheckpointWriter, tmp_path: Path
) -> None:
    journal.add("recover", "x", Recovered({"steps": 1}, written.shards), StageCost())
    run: Any = Run(tmp_path)
    recovered = find_recovered(run)
    assert recovered is not None
    assert recovered.result == {"steps": 1}
    assert find_layers(run, recovered.shards).shards == written.shards  # that outside the layers too: it was trained
    (written.path / written.shards[3].name).unlink()
    assert find_recovered(run) is None
    assert find_layers(run, None).shards.keys() == {0, 1, 2}
