"""Recovery has states of its own; a run that is killed in it, or after it, trains no step twice that was saved."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stun_exp.state.journal import Journal

Go = Callable[..., dict[str, Any]]
InChild = Callable[..., Callable[[], int]]
DieBefore = Callable[..., Callable[[], None]]
Content = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def train(go: Go) -> Go:
    """The run with eighteen steps of recovery, saved after every fifth."""
    return lambda out: go(
        "recovery=expert_distillation",
        "recovery.num_sequences=24",
        "recovery.batch_size=4",
        "recovery.learning_rate=1e-3",
        "recovery.save_every=5",
        out=out,
    )


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every step that is trained in this process from now on."""
    taken: list[int] = []
    original = torch.optim.AdamW.step

    def counted(self: torch.optim.AdamW, closure: None = None) -> Any:
        taken.append(1)
        return original(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    return taken


def replaces_a_shard(source: Path, file: Path) -> bool:
    """Whether this is recovery that puts a trained shard in the place of a pruned one."""
    return file.suffix == ".safetensors" and file.exists()


def before_step(die_before: DieBefore, number: int) -> Callable[[], None]:
    return die_before(torch.optim.AdamW, "step", number)


@pytest.mark.slow
def test_killed_in_and_around_recovery(
    train: Go,
    in_child: InChild,
    die_before: DieBefore,
    prunings: list[int],
    steps: list[int],
    content: Content,
    tmp_path: Path,
) -> None:
    """Half of the shards trained is the trap: those are no longer what the weight stage wrote, and are made again."""
    whole = train(tmp_path / "whole")
    expected = content(tmp_path / "whole/checkpoint")
    assert (whole["recovery"]["steps"], len(steps)) == (18, 18)
    kills = {
        "in the training": (die_before(torch.optim.AdamW, "step", 13), [], 8),
        "between two trained shards": (die_before(os, "replace", 3, replaces_a_shard), [0, 1], 3),
        "before it is recorded": (die_before(Journal, "add", 6), [0, 1, 2], 18),
        "when all is done": (die_before(os, "replace", 1, lambda _, file: file.name == "report.json"), [], 0),
    }
    for name, (where, pruned_again, trained_again) in kills.items():
        out = tmp_path / name
        assert in_child(lambda out=out: train(out), where)() == signal.SIGKILL, name
        prunings.clear()
        steps.clear()
        report = train(out)
        assert content(out / "checkpoint") == expected, name
        assert (prunings, len(steps)) == (pruned_again, trained_again), name
        assert report["recovery"] | {"seconds": 0} == whole["recovery"] | {"seconds": 0}, name
        assert len(report["warnings"]) == len(whole["warnings"]) + bool(pruned_again), name
        assert not (out / "recovery").exists()


@pytest.mark.slow
def test_a_trained_shard_that_is_damaged_is_pruned_and_trained_again(
    train: Go, in_child: InChild, die_before: DieBefore, content: Content, tmp_path: Path
) -> None:
    train(tmp_path / "whole")
    at_the_end = die_before(os, "replace", 1, lambda _, file: file.name == "report.json")
    assert in_child(lambda: train(tmp_path / "out"), at_the_end)() == signal.SIGKILL
    (tmp_path / "out/checkpoint/model-00002-of-00004.safetensors").unlink()
    train(tmp_path / "out")
    assert content(tmp_path / "out/checkpoint") == content(tmp_path / "whole/checkpoint")
