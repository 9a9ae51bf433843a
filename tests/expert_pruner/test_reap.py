"""REAP: gate times norm, averaged over an expert's own tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.reap import REAP
from stun_exp.expert_pruner.softmax_gate import SoftmaxActivity
from stun_exp.moe.observe import Statistic, observe
from stun_exp.moe.plan import Plan
from stun_exp.moe.statistics import ExpertActivity, MeanOutputs
from stun_exp.streaming.walk import Walk


def test_reap_by_hand(planned: Callable[..., Plan], source: Any) -> None:
    """(0.2 x 5 + 0.6 x 10) / 2 = 3.5 against 0.5 x 8 = 4: the sum would keep expert 0, the mean keeps 1.

    Mean gate times mean norm, 0.4 x 7.5 = 3, is not REAP either.
    """
    activity = ExpertActivity(2)
    for expert, (outputs, gates) in enumerate([([[3.0, 4.0], [6.0, 8.0]], [0.2, 0.6]), ([[0.0, -8.0]], [0.5])]):
        y_ND = torch.tensor(outputs)
        activity.expert(expert, y_ND, y_ND, y_ND, torch.tensor(gates))
    (layer,) = planned(REAP(ratio=0.5, gate="model"), [source(0, torch.ones(2, 2))], [[activity]]).layers
    assert layer.facts["scores"] == pytest.approx([3.5, 4.0])
    assert layer.kept == [1]


def test_the_gate_is_the_one_that_mixtral_multiplies_with(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    """A token's gates sum to 1; the plain softmax of the published code would give less."""
    for step in Walk(mixtral, [tokens_BT], torch.device("cpu"), "test"):
        activity = ExpertActivity(6)
        with observe(step.layer, [activity]):
            step.forward()
        assert float(activity.gate_E.sum()) == pytest.approx(tokens_BT.numel(), rel=1e-5)


def test_a_softmax_over_all_experts_is_no_gate_of_the_model() -> None:
    """Logits of ln 6, ln 3, ln 1: the model's gates for the first two are 2/3 and 1/3, the softmax's 0.6 and 0.3."""
    activity = SoftmaxActivity(3)
    logits_TE = torch.tensor([[6.0, 3.0, 1.0], [1.0, 3.0, 6.0]]).log()
    activity.routing(logits_TE, torch.tensor([[0, 1], [2, 1]]), torch.tensor([[2 / 3, 1 / 3]] * 2))
    for expert, num_tokens in enumerate((1, 2, 1)):
        y_ND = torch.tensor([[3.0, 4.0]]).expand(num_tokens, -1)
        activity.expert(expert, y_ND, y_ND, y_ND, torch.full((num_tokens,), 2 / 3))
    assert activity.gate_E.tolist() == pytest.approx([0.6, 0.6, 0.6])
    assert activity.reap_E().tolist() == pytest.approx([3.0, 1.5, 3.0])


class Routing(Statistic):
    """What the router said of all tokens."""

    def __init__(self) -> None:
        self.softmax_TE: list[Tensor] = []
        self.chosen_TK: list[Tensor] = []

    def routing(self, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> None:
        self.softmax_TE.append(router_logits_TE.double().softmax(1))
        self.chosen_TK.append(topk_index_TK)


def test_the_softmax_is_of_the_tokens_that_chose_the_expert(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    """Two batches, each at once and, beside a statistic that wants portions, in portions, the last of them smaller.

    A router that does not renormalize has the softmax for its gates, and one that does has not.
    """
    for step in Walk(checkpoint, [tokens_BT[:3], tokens_BT[3:]], torch.device("cpu"), "test"):
        if not step.layer.is_moe:
            continue
        softmax, own, routing = SoftmaxActivity(6), ExpertActivity(6), Routing()
        with observe(step.layer, [softmax, own, routing]):
            step.forward()
        portions, mean = SoftmaxActivity(6), MeanOutputs()
        mean.chunk_tokens = 20
        with observe(step.layer, [portions, mean]):
            step.forward()
        softmax_TE = torch.cat(routing.softmax_TE)
        of_chosen_TE = softmax_TE * torch.zeros_like(softmax_TE).scatter(1, torch.cat(routing.chosen_TK), 1.0)
        torch.testing.assert_close(softmax.gate_E, of_chosen_TE.sum(0), rtol=1e-5, atol=1e-5)  # fp32 against fp64
        torch.testing.assert_close(portions.gate_E, softmax.gate_E)
        torch.testing.assert_close(portions.gated_norm_E, softmax.gated_norm_E, rtol=1e-5, atol=1e-5)
        assert torch.equal(softmax.count_E, own.count_E)
        assert torch.allclose(softmax.gate_E, own.gate_E) is not step.layer.renormalizes


def test_no_batch_that_was_run_is_kept_for_other_runs() -> None:
    activity = SoftmaxActivity(2)
    activity.routing(torch.ones(1, 2), torch.tensor([[0]]), torch.ones(1, 1))
    assert activity.state().keys() == ExpertActivity(2).state().keys()


def test_the_setting_chooses_the_gate(source: Any) -> None:
    layer = source(0, torch.ones(2, 2))
    assert [type(one) for one in REAP(ratio=0.5, gate="model").statistics(layer)] == [ExpertActivity]
    assert [type(one) for one in REAP(ratio=0.5, gate="softmax").statistics(layer)] == [SoftmaxActivity]
