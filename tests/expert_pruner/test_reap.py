"""REAP: gate times norm, averaged over an expert's own tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.reap import REAP
from stun_exp.moe.observe import observe
from stun_exp.moe.plan import Plan
from stun_exp.moe.statistics import ExpertActivity
from stun_exp.streaming.walk import Walk


def test_reap_by_hand(planned: Callable[..., Plan], source: Any) -> None:
    """(0.2 x 5 + 0.6 x 10) / 2 = 3.5 against 0.5 x 8 = 4: the sum would keep expert 0, the mean keeps 1.

    Mean gate times mean norm, 0.4 x 7.5 = 3, is not REAP either.
    """
    activity = ExpertActivity(2)
    for expert, (outputs, gates) in enumerate([([[3.0, 4.0], [6.0, 8.0]], [0.2, 0.6]), ([[0.0, -8.0]], [0.5])]):
        y_ND = torch.tensor(outputs)
        activity.expert(expert, y_ND, y_ND, y_ND, torch.tensor(gates))
    (layer,) = planned(REAP(ratio=0.5), [source(0, torch.ones(2, 2))], [[activity]]).layers
    assert layer.facts["scores"] == pytest.approx([3.5, 4.0])
    assert layer.kept == [1]


def test_the_gate_is_the_one_that_mixtral_multiplies_with(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    """A token's gates sum to 1; the plain softmax of the published code would give less."""
    for step in Walk(mixtral, [tokens_BT], torch.device("cpu"), "test"):
        activity = ExpertActivity(6)
        with observe(step.layer, [activity]):
            step.forward()
        assert float(activity.gate_E.sum()) == pytest.approx(tokens_BT.numel(), rel=1e-5)
