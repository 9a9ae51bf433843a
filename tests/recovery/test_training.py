"""The parts of a training, by hand."""

from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from torch import Tensor, nn

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.recovery.training import History, Saved, batch_BT, cosine, course, hold, language_loss, zeros_of


def test_an_epoch_shows_every_sequence_once_in_an_order_of_its_own() -> None:
    sequences_NT = torch.arange(10)[:, None]
    epochs = [[batch_BT(sequences_NT, 4, 3 * epoch + i, seed=0)[:, 0].tolist() for i in range(3)] for epoch in range(2)]
    assert [len(batch) for batch in epochs[0]] == [4, 4, 2]
    orders = [[number for batch in epoch for number in batch] for epoch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]
    assert batch_BT(sequences_NT, 4, 0, seed=1)[:, 0].tolist() != epochs[0][0]


def test_the_rate_falls_along_a_cosine() -> None:
    assert [cosine(done) for done in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])
    assert cosine(1 / 3) == pytest.approx(0.75)


def test_a_token_is_guessed_from_those_before_it() -> None:
    """Logits at a position are of the next token: the first token is never guessed, the last logits never used."""
    ids_BT = torch.tensor([[2, 0, 1]])
    logits_BTV = torch.full((1, 3, 3), -100.0)
    logits_BTV[0, 0, 0] = logits_BTV[0, 1, 1] = 100
    logits_BTV[0, 2] = torch.nan
    assert language_loss(logits_BTV, ids_BT).item() == pytest.approx(0, abs=1e-6)
    assert language_loss(torch.zeros(1, 3, 3), ids_BT).item() == pytest.approx(torch.log(torch.tensor(3.0)).item())


def test_held_weights_are_as_if_they_were_not_there() -> None:
    """AdamW on [a, 0, b] with the middle held moves a and b as AdamW on [a, b]: in the norm that is clipped, too."""
    held, alone = nn.Parameter(torch.tensor([1.0, 0.0, -2.0])), nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizers = [torch.optim.AdamW([p], lr=0.1, weight_decay=0.0, fused=True) for p in (held, alone)]
    for step in range(3):
        held.grad = torch.tensor([0.5, 1e4, step - 1.0])
        alone.grad = held.grad[[0, 2]]
        hold([(held, torch.tensor([False, True, False]))])
        for parameter, optimizer in zip((held, alone), optimizers, strict=True):
            nn.utils.clip_grad_norm_([parameter], 0.5)
            optimizer.step()
    # Three numbers and two may be worked on by other instructions.
    torch.testing.assert_close(held.detach()[[0, 2]], alone.detach(), rtol=1e-6, atol=0)
    assert held.tolist()[1] == 0
    assert held.tolist()[0] < 0.9
    assert all(float(moment[1]) == 0 for moment in optimizers[0].state[held].values() if moment.ndim)


def test_only_prunable_matrices_are_held(mixtral: Checkpoint) -> None:
    """A router or a norm that has a zero is free to move."""
    layer = mixtral.read_layer(0)
    for parameter in layer.module.parameters():
        parameter.data[0] = 0
    found = {id(parameter) for parameter, where in zeros_of([layer]) if where.any()}
    attention = layer.module.self_attn
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    expected = [*(linear.weight for linear in linears), layer.experts.gate_up_proj, layer.experts.down_proj]
    assert found == {id(parameter) for parameter in expected}


def test_the_course_is_of_tenths() -> None:
    losses = [float(i) for i in range(20)]
    assert course(losses) == {"first": 0.0, "last": 19.0, "tenths": [2 * i + 0.5 for i in range(10)]}
    assert course([3.0, 1.0])["tenths"] == [3.0, 1.0]
    assert sum(course([1.0] * 17)["tenths"]) == 10


def _state(file: Path) -> tuple[nn.Linear, torch.optim.Optimizer, Saved]:
    model = nn.Linear(2, 2)
    return model, torch.optim.AdamW(model.parameters()), Saved(file, {"learning_rate": 1.0})


def test_a_full_disk_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's writer says RuntimeError; the state must be the old one, and the message say what to do."""
    model, optimizer, saved = _state(tmp_path / "recovery/state.pt")
    saved.save(model, optimizer, History(2.0, [1.0], [0.5]))

    def full(state: dict[str, Tensor], handle: BinaryIO) -> None:
        handle.write(b"half of it")
        raise RuntimeError("PytorchStreamWriter failed writing file\nmore")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"state\.pt: could not be written \(Pyt.* file\); free some space"):
        saved.save(model, optimizer, History(2.0, [1.0, 0.9], [0.5, 0.4]))
    assert [file.name for file in saved.file.parent.iterdir()] == ["state.pt"]
    assert saved.restore(model, optimizer, pytest.fail) == History(2.0, [1.0], [0.5])
    saved.remove()
    assert list(tmp_path.iterdir()) == []
    assert saved.restore(model, optimizer, pytest.fail) == History()
