"""The third stage in a run: text that calibration has not seen, and a killed run that goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stun_exp.calibration.local import LocalText
from stun_exp.calibration.toy import ToyText
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.pipeline.training_text import training_sequences


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Forty blocks of 16 tokens, all different."""
    rows = torch.randint(0, 64, (40, 16), generator=torch.Generator().manual_seed(0)).tolist()
    file = tmp_path / "text.jsonl"
    file.write_text("\n".join(json.dumps({"input_ids": row}) for row in rows))
    return file


class Tokenizer:
    eos_token_id = None

    def __len__(self) -> int:
        return 64


def test_no_sequence_is_both_calibrated_and_trained_on(text: Path) -> None:
    """With another seed a file would give some of the same blocks again."""
    calibration = LocalText(path=str(text), num_sequences=16, sequence_length=16, batch_size=4)
    seen = torch.cat(calibration.tokens(Tokenizer(), 3).batches_BT).tolist()
    trained = training_sequences(calibration, Tokenizer(), 3, 24)
    assert trained.shape == (24, 16)
    assert len({tuple(row) for row in (*seen, *trained.tolist())}) == 40
    assert torch.equal(trained, training_sequences(calibration, Tokenizer(), 3, 24))


def test_a_text_that_is_too_short_is_known_before_the_run(text: Path) -> None:
    calibration = LocalText(path=str(text), num_sequences=16, sequence_length=16, batch_size=4)
    with pytest.raises(ValueError, match=r"recovery\.num_sequences=25 of 16 tokens: after the 16 .* holds only 24"):
        training_sequences(calibration, Tokenizer(), 3, 25)


def test_no_recovery_draws_no_text() -> None:
    calibration = ToyText(domain="all", num_sequences=2, sequence_length=8, batch_size=1)
    assert len(training_sequences(calibration, None, 0, 0)) == 0


@pytest.fixture
def go(run_with: Callable[..., dict[str, Any]], mixtral: Checkpoint, text: Path) -> Callable[[Path], dict[str, Any]]:
    """One run with recovery into a folder, and its report."""

    def run_into(out: Path) -> dict[str, Any]:
        return run_with(
            out,
            f"model.path={mixtral.path}",
            "calibration=local",
            f"calibration.path={text}",
            "calibration.sequence_length=16",
            "calibration.num_sequences=16",
            "calibration.batch_size=4",
            "expert_pruner.ratio=0.2",
            "sparsity=0.5",
            "recovery=expert_distillation",
            "recovery.num_sequences=24",
            "recovery.batch_size=4",
            "recovery.learning_rate=1e-3",
            "recovery.save_every=5",
            "save=true",
        )

    return run_into


def test_a_killed_run_started_again_ends_as_if_it_had_not_been(
    go: Callable[[Path], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run finds the pruned layers, and goes on training; the total is counted afterwards."""
    whole = go(tmp_path / "whole")
    assert whole["sparsity"]["achieved"] == pytest.approx(0.5, abs=0.001)
    assert whole["recovery"]["steps"] == 18
    original, taken = torch.optim.AdamW.step, []

    def counting(self: torch.optim.AdamW, closure: None = None) -> Any:
        taken.append(1)
        if len(taken) == 13:
            raise KeyboardInterrupt
        return original(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", counting)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "killed")
    again = go(tmp_path / "killed")
    assert len(taken) == 13 + 8
    assert again["warnings"] == whole["warnings"]
    assert again["recovery"] | {"seconds": 0} == whole["recovery"] | {"seconds": 0}
    shards = sorted((tmp_path / "whole/checkpoint").glob("*.safetensors"))
    assert len(shards) == 4
    for shard in shards:
        ours = load_file(tmp_path / "killed/checkpoint" / shard.name)
        assert all(torch.equal(tensor, ours[key]) for key, tensor in load_file(shard).items())
    assert not (tmp_path / "killed/recovery").exists()
