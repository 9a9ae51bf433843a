"""Hidden states beyond stream.hidden_states_gb lie in files, and those within it do not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint import scratch
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.streaming.settings import Streaming
from stun_exp.streaming.walk import Walk

CPU = torch.device("cpu")
BATCH = 32 * 16 * 4
"""Bytes of the hidden states of one sequence: 32 tokens of 16 numbers in fp32."""


def in_files(hidden_BTD: list[Tensor], folder: Path) -> list[bool]:
    """Whether each batch's states lie in a file of the folder, which has lost its name already."""
    names = [tensor.untyped_storage().filename for tensor in hidden_BTD]
    assert all(name is None or Path(name).parent == folder for name in names)
    return [name is not None for name in names]


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        (0, [True, True, True, True]),
        (2.5, [False, False, True, True]),
        (3.99, [False, False, False, True]),
        (4, [False, False, False, False]),
        (100, [False, False, False, False]),
    ],
)
def test_as_many_as_fit_stay_in_memory(
    batches: float, expected: list[bool], mixtral: Checkpoint, tokens_BT: Tensor, tmp_path: Path
) -> None:
    """Of four sequences, those that come to each layer and those that leave it."""
    stream = Streaming(experts="memory", hidden_states_gb=batches * BATCH / 1e9)
    walk = Walk(mixtral, list(tokens_BT.split(1)), CPU, "test", spill=stream.spill(tmp_path))
    layers = 0
    for step in walk:
        step.forward()
        assert [states.nbytes for states in step.hidden_BTD] == [BATCH] * 4
        assert in_files(step.hidden_BTD, tmp_path) == expected
        assert in_files(step.outputs_BTD or [], tmp_path) == expected
        layers += 1
    assert layers == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("limit", "spills"), [("0", True), ("1e-6", True), ("1.0", False)])
def test_a_run_heeds_the_setting(
    limit: str, spills: bool, runner: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file lies in the run's folder; a batch of four sequences has 8 kB of states, more than 1e-6 GB."""
    mapped, shapes = scratch.mapped, list[tuple[int, ...]]()

    def counting(folder: Path, shape: Any, dtype: torch.dtype) -> Tensor:
        assert folder == tmp_path / "run"
        shapes.append(tuple(shape))
        return mapped(folder, shape, dtype)

    monkeypatch.setattr(scratch, "mapped", counting)
    runner("sparsity=0.5", "expert_pruner.ratio=0.25", f"stream.hidden_states_gb={limit}")
    assert bool(shapes) is spills
    assert set(shapes) <= {(4, 32, 16)}
