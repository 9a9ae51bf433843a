"""Tensors that lie in files compute what tensors in memory compute, and leave nothing behind."""

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.scratch import Spill, mapped
from stun_exp.streaming.walk import Walk

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_mapped_tensor_is_zeros_that_can_be_written(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = mapped(tmp_path, (3, 5, 7), dtype)
    assert (tensor.shape, tensor.dtype, bool(tensor.any())) == ((3, 5, 7), dtype, False)
    tensor[1] = 2
    assert float(tensor.sum()) == 70
    assert list(tmp_path.iterdir()) == []  # no name is left for a killed process to leave behind


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found when the memory is written, it would end the process with a bus error."""

    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=rf"{tmp_path}: no room for 4\.0 MB of scratch \(No space left"):
        mapped(tmp_path, (1000, 1000), torch.float32)


def test_what_is_above_the_limit_goes_to_files(tmp_path: Path) -> None:
    """Of 40 bytes each: two fit within 100, the third does not."""
    tensors: list[Tensor] = []
    given = [torch.randn(10) for _ in range(4)]
    for tensor in given:
        Spill(tmp_path, 100).keep(tensors, tensor)
    assert [kept is tensor for kept, tensor in zip(tensors, given, strict=True)] == [True, True, False, False]
    assert all(torch.equal(kept, tensor) for kept, tensor in zip(tensors, given, strict=True))


def test_experts_in_files_are_the_experts(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Also after they are changed in place, which must not reach the checkpoint."""
    out_of_core = Checkpoint(checkpoint.path, None, scratch=tmp_path)
    for index in range(checkpoint.num_layers):
        ours, expected = (c.read_layer(index).module.state_dict() for c in (out_of_core, checkpoint))
        assert all(torch.equal(ours[name], expected[name]) for name in expected)
        for tensor in ours.values():
            tensor.zero_()
        again = out_of_core.read_layer(index).module.state_dict()
        assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_a_walk_whose_states_lie_in_files_sees_the_same(
    checkpoint: Checkpoint, tokens_BT: Tensor, tmp_path: Path
) -> None:
    batches_BT = [tokens_BT[:2], tokens_BT[2:]]
    spilled = Walk(checkpoint, batches_BT, CPU, "test", spill=Spill(tmp_path, 0))
    for ours, theirs in zip(spilled, Walk(checkpoint, batches_BT, CPU, "test"), strict=True):
        # States that lie elsewhere in memory may take other kernels, which differ in the last digits.
        torch.testing.assert_close(list(ours.hidden_BTD), list(theirs.hidden_BTD), rtol=1e-5, atol=1e-5)


def test_an_error_of_the_reader_reaches_the_walk(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    """The next layer is read beside the work on one; what goes wrong there must not be lost with the thread."""

    def broken(index: int, plan: object) -> object:
        raise OSError(f"layer {index} is gone")

    object.__setattr__(mixtral, "read_planned", broken)
    with pytest.raises(OSError, match="layer 0 is gone"):
        next(iter(Walk(mixtral, [tokens_BT], CPU, "test")))
