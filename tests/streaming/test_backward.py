"""Walking a checkpoint backwards is autograd on the whole model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.checkpoint.scratch import IN_MEMORY, Spill
from stun_exp.moe.families import DENSE
from stun_exp.moe.observe import Statistic, observe
from stun_exp.streaming.backward import BackwardWalk
from stun_exp.streaming.walk import Walk
from stun_exp.structured_pruner.curvature import Kfac

CPU = torch.device("cpu")


class Whole:
    """Moments of each linear's inputs and gradients, and the loss, by autograd on the model in memory."""

    def __init__(self, path: Path, names: set[str], batches_BT: list[Tensor]):
        self.model = load_checkpoint(path, CPU).double().requires_grad_(False)
        self.inputs: dict[str, list[Tensor]] = {name: [] for name in names}
        self.gradients: dict[str, list[Tensor]] = {name: [] for name in names}
        for name in names:
            self.model.get_submodule(name).register_forward_hook(self._hook(name))
        self.model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())
        total, count = 0.0, 0
        for tokens_BT in batches_BT:
            logits = self.model(input_ids=tokens_BT, use_cache=False).logits[:, :-1]
            loss = cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="sum")
            loss.backward()
            total, count = total + loss.item(), count + tokens_BT[:, 1:].numel()
        self.loss = total / count

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.inputs[name].append(args[0].detach().flatten(0, -2))
            output.register_hook(lambda gradient: self.gradients[name].append(gradient.flatten(0, -2)))

        return hook

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        x_NC, g_NO = torch.cat(self.inputs[name]), torch.cat(self.gradients[name])
        return x_NC.T @ x_NC / len(x_NC), g_NO.T @ g_NO / len(g_NO)


def batches(tokens_BT: Tensor) -> list[Tensor]:
    """Of different size and length, as the last one often is."""
    return [tokens_BT[:3], tokens_BT[3:, :20]]


@pytest.mark.parametrize("family", DENSE)
def test_the_curvature_is_that_of_the_whole_model(
    tiny_model: Callable[[str], Path], tokens_BT: Tensor, family: str
) -> None:
    """In 64 bits, so that no kernel's order of sums shows."""
    checkpoint = Checkpoint(tiny_model(family), torch.float64)
    layers = zip(checkpoint.paths, checkpoint.outlines, strict=True)
    names = {f"{path}.{name}" for path, layer in layers for name, _ in layer.linears()}
    whole = Whole(checkpoint.path, names, batches(tokens_BT))
    walk = BackwardWalk(Walk(checkpoint, batches(tokens_BT), CPU, "test"))
    order = []
    for step in walk:
        kfac = Kfac({name: name for name, _ in step.layer.linears()})
        with observe(step.layer, [kfac]):
            step.backward()
        for name in kfac.feeds:
            inputs_CC, outputs_RR = kfac.factors(name, bias=False)
            expected = whole.factors(f"{checkpoint.paths[step.layer.index]}.{name}")
            torch.testing.assert_close(inputs_CC, expected[0], rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(outputs_RR, expected[1], rtol=1e-6, atol=1e-8)
        order.append(step.layer.index)
    assert order == [2, 1, 0]
    assert walk.loss == pytest.approx(whole.loss)
    assert walk.forward_passes == pytest.approx(3.0)


def test_hidden_states_and_gradients_may_lie_in_files(
    tiny_model: Callable[[str], Path], tokens_BT: Tensor, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(tiny_model("llama"), None)
    found = {}
    for name, spill in (("memory", IN_MEMORY), ("files", Spill(tmp_path, 0))):
        for step in BackwardWalk(Walk(checkpoint, batches(tokens_BT), CPU, "test", spill=spill)):
            step.backward()
            found[name] = step.inputs_gradients_BTD
    for one, other in zip(found["memory"], found["files"], strict=True):
        assert torch.equal(one, other)
    assert not list(tmp_path.iterdir())


def test_a_layer_that_nobody_runs_is_run_all_the_same(tiny_model: Callable[[str], Path], tokens_BT: Tensor) -> None:
    checkpoint = Checkpoint(tiny_model("llama"), None)
    first = []
    for runs in (True, False):
        for step in BackwardWalk(Walk(checkpoint, [tokens_BT], CPU, "test")):
            if runs or step.layer.index == 0:
                step.backward()
        first.append(step.inputs_gradients_BTD[0])
    assert torch.equal(*first)


def test_a_forward_run_shows_no_gradient(tiny_model: Callable[[str], Path], tokens_BT: Tensor) -> None:
    class Told(Statistic):
        def gradient(self, name: str, x_NC: Tensor, g_NO: Tensor) -> None:
            raise AssertionError("there is none")

    for step in Walk(Checkpoint(tiny_model("llama"), None), [tokens_BT], CPU, "test"):
        with observe(step.layer, [Told()]):
            step.forward()
