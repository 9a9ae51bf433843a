"""Nothing is skipped, and nothing is measured for it."""

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.pipeline.skip import gate_statistics, layer_thresholds
from stun_exp.skipping.none import NoSkipping
from stun_exp.streaming.walk import Walk


def test_none_costs_no_pass(mixtral: Checkpoint, tokens_BT: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "_read", lambda *args: pytest.fail("read weights"))
    walk = Walk(mixtral, [tokens_BT], torch.device("cpu"), "test")
    assert layer_thresholds(NoSkipping(), gate_statistics(NoSkipping(), mixtral), walk) == {}
    assert walk.forward_passes == 0
