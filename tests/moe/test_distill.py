"""The expert-wise loss is what a plain loop over experts gives, and watching it changes nothing."""

from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.moe.distill import distil_experts, expert_mse
from stun_exp.moe.layers import MoELayer, layers_of
from stun_exp.moe.observe import Statistic, observe

CPU = torch.device("cpu")


def loaded(path: Path) -> tuple[PreTrainedModel, list[MoELayer]]:
    """A model with gradients, and its layers."""
    checkpoint = Checkpoint(path, None)
    model = load_checkpoint(path, CPU).requires_grad_(True)
    return model, layers_of(model, checkpoint.family)


def teachers_of(path: Path, noise: float = 0.0) -> dict[int, nn.Module]:
    """The experts of each layer, as on disk and then disturbed."""
    torch.manual_seed(1)
    checkpoint = Checkpoint(path, None)
    layers = [checkpoint.read_layer(index) for index in range(checkpoint.num_layers)]
    teachers: dict[int, nn.Module] = {layer.index: layer.experts for layer in layers if layer.is_moe}
    for teacher in teachers.values():
        for parameter in teacher.parameters():
            parameter.data.add_(noise * torch.randn_like(parameter))
    return teachers


class Calls(Statistic):
    """Each expert's tokens and what it made of them."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def expert(self, expert: int, x_ND: Tensor, h_NF: Tensor, y_ND: Tensor, weight_N: Tensor) -> None:
        self.seen[expert] = (x_ND, y_ND)


def by_hand(experts: Any, expert: int, x_ND: Tensor) -> Tensor:
    """One expert of a gated family, written out."""
    gate_NF, up_NF = (x_ND @ experts.gate_up_proj[expert].T).chunk(2, dim=1)
    output_ND: Tensor = (nn.functional.silu(gate_NF) * up_NF) @ experts.down_proj[expert].T
    return output_ND


def test_the_mean_is_each_experts_own_and_the_sum_is_over_experts() -> None:
    """Expert 0 is off by 1 and 3 in its two tokens: 5; expert 2 by 2 in one of two outputs: 2; expert 1 has none: 0.

    A mean over all tokens would weigh experts by their load.
    """
    y_SD = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 3.0]])
    assert expert_mse(y_SD, torch.zeros(3, 2), torch.tensor([0, 2, 0]), 3).item() == pytest.approx(5 + 2)


def test_the_loss_is_that_of_a_plain_loop_over_layers_and_experts(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    model, layers = loaded(checkpoint.path)
    teachers = teachers_of(checkpoint.path, noise=0.1)
    with torch.no_grad(), distil_experts(layers, teachers) as loss:
        loss.begin()
        model(tokens_BT)
        found = loss.total().item()
    expected = 0.0
    for layer in (layer for layer in layers if layer.is_moe):
        calls = Calls()
        layer.experts.config = copy(model.config)
        with torch.no_grad(), observe(layer, [calls]):
            model(tokens_BT)
        for expert, (x_ND, y_ND) in calls.seen.items():
            if len(x_ND):
                expected += (by_hand(teachers[layer.index], expert, x_ND) - y_ND).square().mean().item()
    assert found == pytest.approx(expected, rel=1e-4)
    assert found > 0.01


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_outputs_and_their_gradients_do_not_change(
    checkpoint: Checkpoint, tokens_BT: Tensor, implementation: str
) -> None:
    def outcome(watch: bool) -> tuple[Tensor, list[Tensor]]:
        model, layers = loaded(checkpoint.path)
        model.set_experts_implementation(implementation)
        with distil_experts(layers, teachers_of(checkpoint.path) if watch else {}):
            logits = model(tokens_BT).logits
        torch.autograd.backward(logits.square().mean())
        return logits.detach(), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    (plain, plain_gradients), (watched, gradients) = outcome(False), outcome(True)
    torch.testing.assert_close(watched, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients, plain_gradients, rtol=1e-4, atol=1e-5)


def test_a_model_is_at_no_distance_from_itself(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    model, layers = loaded(checkpoint.path)
    with distil_experts(layers, teachers_of(checkpoint.path)) as loss:
        loss.begin()
        model(tokens_BT)
        assert loss.total().item() == 0


def test_the_teacher_is_a_constant(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    """Of one layer: the gradient of the student's experts is that of the loop, the teacher has none.

    If the teacher's outputs had a gradient too, the layers below would be trained to feed both experts what they
    agree on.
    """
    model, layers = loaded(mixtral.path)
    teachers = teachers_of(mixtral.path, noise=0.1)
    inputs: list[Tensor] = []
    layers[1].experts.register_forward_pre_hook(lambda module, args: inputs.extend(args))
    with distil_experts(layers, {1: teachers[1]}) as loss:
        loss.begin()
        model(tokens_BT)
        x_TD, index_TK, _ = inputs
        total = loss.total()
        x_gradient, *gradients = torch.autograd.grad(total, [x_TD, *layers[1].experts.parameters()])
    x_TD = x_TD.detach().requires_grad_(True)
    expected = torch.zeros(())
    for expert in range(6):
        routed_ND = x_TD[(index_TK == expert).any(1)]
        target_ND = by_hand(teachers[1], expert, routed_ND).detach()
        expected = expected + nn.functional.mse_loss(by_hand(layers[1].experts, expert, routed_ND), target_ND)
    by_loop = torch.autograd.grad(expected, [x_TD, *layers[1].experts.parameters()])
    torch.testing.assert_close([x_gradient, *gradients], list(by_loop), rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in teachers[1].parameters())


def test_a_second_run_in_the_backward_pass_counts_for_nothing(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    """Gradient checkpointing runs each layer again after the loss is known: it must neither add nor be kept."""
    model, layers = loaded(mixtral.path)
    with distil_experts(layers, teachers_of(mixtral.path, noise=0.1)) as loss:
        loss.begin()
        model(tokens_BT)
        once = loss.total()
        model(tokens_BT)
        with pytest.raises(AssertionError, match=r"since begin\(\)"):
            loss.total()
        loss.begin()
        model(tokens_BT)
        assert torch.equal(loss.total(), once)


def test_layers_of_unequal_counts_and_a_teacher_in_16_bits(
    mixtral: Checkpoint,
    write_regrouped: Callable[[Checkpoint, dict[int, list[list[int]]]], Checkpoint],
    tokens_BT: Tensor,
) -> None:
    """In 16 bits a teacher is near the model it is a copy of, but not at it."""
    kept = {0: [0, 1, 2, 3, 4, 5], 1: [1, 3, 5], 2: [0, 5]}
    pruned = write_regrouped(mixtral, {layer: [[e] for e in experts] for layer, experts in kept.items()})
    model, layers = loaded(pruned.path)
    for dtype, low, high in ((torch.float32, 0.0, 0.0), (torch.bfloat16, 1e-9, 1e-2)):
        whole = [mixtral.read_layer(index) for index in range(3)]
        for layer in whole:
            layer.regroup([[e] for e in kept[layer.index]])
        with distil_experts(layers, {layer.index: layer.experts.to(dtype) for layer in whole}) as loss:
            loss.begin()
            model(tokens_BT)
            assert low <= loss.total().item() <= high


def test_a_model_is_itself_again_after_the_block(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    model, layers = loaded(mixtral.path)
    before = [layer.experts.config for layer in layers]
    names = list(model.state_dict())
    with distil_experts(layers, teachers_of(mixtral.path)):
        # The teacher is no part of the model: it would be trained and written.
        assert list(model.state_dict()) == names
    assert all(layer.experts.config is config for layer, config in zip(layers, before, strict=True))
    model(tokens_BT)
