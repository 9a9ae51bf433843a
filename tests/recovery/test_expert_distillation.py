"""A pruned checkpoint is trained, stays as sparse as it was, and a training that was killed goes on bit for bit."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.recovery.expert_distillation import ExpertDistillation
from stun_exp.recovery.training import batch_BT

Make = Callable[..., ExpertDistillation]
Prune = Callable[..., Any]


def text_loss(path: Path, tokens_BT: Tensor) -> float:
    """transformers' own loss of a written model."""
    with torch.inference_mode():
        return float(load_checkpoint(path, torch.device("cpu"))(tokens_BT, labels=tokens_BT).loss)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def is_prunable(key: str) -> bool:
    return key.endswith("proj.weight") or ".w1." in key or ".w2." in key or ".w3." in key


def test_everything_is_trained_but_the_zeros(checkpoint: Checkpoint, prune: Prune, distillation: Make) -> None:
    """Every family: attention, experts, shared experts, routers, norms, embeddings, head; as read from the files."""
    pruned = prune(checkpoint)
    before = pruned.weights()
    report = distillation().recover(pruned)
    after = pruned.weights()
    assert before.keys() == after.keys()
    held = 0
    for key, tensor in after.items():
        if is_prunable(key):
            assert torch.equal(tensor == 0, before[key] == 0), key
            held += int((tensor == 0).sum())
        assert tensor.dtype == before[key].dtype
        assert not torch.equal(tensor, before[key]), key
    assert report["weights_held_at_zero"] == held > 1000
    AutoModelForCausalLM.from_pretrained(pruned.path)


def test_training_lowers_the_loss_of_the_text_and_of_the_experts(
    mixtral: Checkpoint, prune: Prune, distillation: Make
) -> None:
    pruned = prune(mixtral)
    before = text_loss(pruned.path, pruned.sequences_NT)
    report = distillation(epochs=20, learning_rate=3e-3).recover(pruned)
    assert text_loss(pruned.path, pruned.sequences_NT) < 0.9 * before
    assert report["language_loss"]["tenths"][-1] < 0.9 * report["language_loss"]["tenths"][0]
    assert report["expert_loss"]["tenths"][-1] < 0.9 * report["expert_loss"]["tenths"][0]
    assert report["steps"] == 20 * 3


def test_what_is_held_against_the_teacher_stays_nearer_to_it(
    mixtral: Checkpoint, prune: Prune, distillation: Make
) -> None:
    """The term is really in the loss: without it the text alone pulls the experts away."""
    losses = [
        distillation(epochs=10, expert_weight=weight).recover(prune(mixtral, name=str(weight)))["expert_loss"]["last"]
        for weight in (0.0, 100.0)
    ]
    assert losses[1] < 0.9 * losses[0]


def test_the_weight_balances_the_losses_of_the_first_batch(
    mixtral: Checkpoint, prune: Prune, distillation: Make
) -> None:
    pruned = prune(mixtral)
    first = text_loss(pruned.path, batch_BT(pruned.sequences_NT, 4, 0, pruned.seed))
    report = distillation().recover(pruned)
    assert report["language_loss"]["first"] == pytest.approx(first, rel=1e-5)
    assert report["expert_weight"] == pytest.approx(first / report["expert_loss"]["first"], rel=1e-5)
    assert distillation(expert_weight=0.25).recover(prune(mixtral, name="fixed"))["expert_weight"] == 0.25


def test_the_first_step_by_hand(mixtral: Checkpoint, prune: Prune, distillation: Make) -> None:
    """AdamW's first step is the learning rate along the sign of the gradient; of the second none is left here."""
    pruned = prune(mixtral)
    ids_BT = batch_BT(pruned.sequences_NT, 12, 0, pruned.seed)
    model = load_checkpoint(pruned.path, torch.device("cpu")).requires_grad_(True)
    torch.autograd.backward(model(ids_BT, labels=ids_BT).loss)
    weight = model.lm_head.weight
    expected = weight - 1e-3 * weight.grad.sign()
    distillation(epochs=1, batch_size=12, expert_weight=0.0).recover(pruned)
    clear = weight.grad.abs() > 1e-5  # below it AdamW's epsilon counts
    assert float(clear.float().mean()) > 0.9
    torch.testing.assert_close(pruned.weights()["lm_head.weight"][clear], expected[clear], rtol=0, atol=2e-6)


def test_the_rate_of_each_step(
    mixtral: Checkpoint, prune: Prune, distillation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: rates.append(self.param_groups[0]["lr"]))
    distillation(epochs=1, batch_size=3, learning_rate=0.1).recover(prune(mixtral))
    half = 0.5 + 0.5 * 0.5**0.5
    assert rates == pytest.approx([0.1, 0.1 * half, 0.05, 0.1 * (1 - half)])


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends the training as Ctrl-C does, when it is about to take the given step."""
    taken = 0
    original = torch.optim.AdamW.step

    def counting(self: torch.optim.AdamW, closure: None = None) -> Any:
        nonlocal taken
        taken += 1
        if taken == step:
            raise KeyboardInterrupt
        return original(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", counting)


@pytest.mark.parametrize(("step", "left"), [(2, 6), (4, 4), (6, 2)])
def test_a_killed_training_goes_on_bit_for_bit(
    checkpoint: Checkpoint, prune: Prune, distillation: Make, monkeypatch: pytest.MonkeyPatch, step: int, left: int
) -> None:
    """Six steps, a state every second: the first kill comes before any state, the others are one step past one."""
    whole = prune(checkpoint, name="whole")
    report = distillation(save_every=2).recover(whole)
    killed = prune(checkpoint, name="killed")
    before = killed.weights()
    with monkeypatch.context() as patch:
        kill_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            distillation(save_every=2).recover(killed)
    assert same(killed.weights(), before)  # training in memory must not reach the files it was read from
    assert killed.state.exists() == (step > 2)
    with monkeypatch.context() as patch:
        kill_at(left + 1, patch)  # it takes no more steps than are left
        again = distillation(save_every=3).recover(killed)
    assert same(killed.weights(), whole.weights())
    assert again | {"seconds": 0} == report | {"seconds": 0}
    assert killed.warnings == []
    assert not killed.state.parent.exists()


def test_the_state_of_another_training_is_not_used(
    mixtral: Checkpoint, prune: Prune, distillation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other settings, and other zeros: going on from it would undo the pruning."""
    for name, ratio, settings in (("settings", 0.5, {"learning_rate": 2e-3}), ("weights", 0.6, {})):
        fresh = prune(mixtral, ratio, name=f"fresh {name}")
        distillation(save_every=2, **settings).recover(fresh)
        killed = prune(mixtral, name=name)
        with monkeypatch.context() as patch:
            kill_at(4, patch)
            with pytest.raises(KeyboardInterrupt):
                distillation(save_every=2).recover(killed)
        killed.path.rename(killed.path.with_name("old"))
        pruned = prune(mixtral, ratio, name=name)
        distillation(save_every=2, **settings).recover(pruned)
        assert same(pruned.weights(), fresh.weights())
        (warning,) = pruned.warnings
        assert "state.pt is left from another training" in warning


def test_running_layers_again_changes_no_weight(mixtral: Checkpoint, prune: Prune, distillation: Make) -> None:
    kept, forgotten = prune(mixtral, name="kept"), prune(mixtral, name="forgotten")
    reports = [
        distillation(gradient_checkpointing=again).recover(pruned)
        for pruned, again in ((kept, False), (forgotten, True))
    ]
    assert same(kept.weights(), forgotten.weights())
    assert reports[0] | {"seconds": 0} == reports[1] | {"seconds": 0}


def test_a_layer_is_forgotten_when_asked(
    mixtral: Checkpoint, prune: Prune, distillation: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradient checkpointing works in transformers' training mode alone; dropout and router noise must stay off."""
    runs: dict[bool, int] = {}
    for again in (False, True):
        pruned = prune(mixtral, name=str(again))
        model, layers = pruned.load()
        calls: list[bool] = []
        layers[0].block.register_forward_pre_hook(lambda module, *_, calls=calls: calls.append(module.training))
        with monkeypatch.context() as patch:
            patch.setattr(pruned, "load", lambda model=model, layers=layers: (model, layers))
            distillation(gradient_checkpointing=again, epochs=1).recover(pruned)
        assert not any(calls)
        runs[again] = len(calls)
    assert runs == {False: 3, True: 6}


def test_layers_of_unequal_counts_are_trained(mixtral: Checkpoint, prune: Prune, distillation: Make) -> None:
    pruned = prune(mixtral, groups={1: [[1], [4], [5]], 2: [[0], [2]]})
    before = text_loss(pruned.path, pruned.sequences_NT)
    distillation(epochs=10).recover(pruned)
    assert text_loss(pruned.path, pruned.sequences_NT) < before
    assert Checkpoint(pruned.path, None).experts_per_layer == [6, 3, 2]


def test_merged_experts_are_taught_by_the_one_that_represents_them(mixtral: Checkpoint, prune: Prune) -> None:
    """Their mean is no expert of the full model, and would teach what merging lost."""
    pruned = prune(mixtral, groups={1: [[1], [0, 2], [4, 5]]})
    teacher, whole = pruned.teacher(1), mixtral.read_layer(1).experts
    assert torch.equal(teacher.down_proj, whole.down_proj[[1, 2, 5]])
    assert torch.equal(teacher.gate_up_proj, whole.gate_up_proj[[1, 2, 5]])
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_experts_as_they_were_give_nothing_to_balance(mixtral: Checkpoint, prune: Prune, distillation: Make) -> None:
    """Whole experts removed and no weight: L_expert is 0, and L_CE over it no number."""
    pruned = prune(mixtral, ratio=0.0, groups={1: [[1], [4], [5]]})
    with pytest.raises(ValueError, match=r"expert_weight=balanced.*pass recovery\.expert_weight=0\.0"):
        distillation().recover(pruned)
    report = distillation(expert_weight=0.0).recover(pruned)
    assert report["weights_held_at_zero"] == 0
    assert report["expert_loss"]["first"] == 0 < report["expert_loss"]["last"]


def test_a_checkpoint_in_16_bits_is_trained_in_32_and_written_in_16(
    mixtral: Checkpoint, prune: Prune, distillation: Make
) -> None:
    """A step of 5e-5 is below half the last bit of weights above 0.02: in 16 bits all of them would come to nothing."""
    source = Checkpoint(mixtral.path, torch.bfloat16)
    pruned = prune(source)
    before = pruned.weights()
    distillation(epochs=10, learning_rate=5e-5).recover(pruned)
    after = pruned.weights()
    large = {key: before[key].abs() > 0.05 for key in after if ".w1." in key}
    changed = [float((after[key] != before[key])[where].float().mean()) for key, where in large.items()]
    assert all(tensor.dtype == torch.bfloat16 for tensor in after.values())
    assert min(changed) > 0.02
    assert all(torch.equal(after[key] == 0, before[key] == 0) for key in after if is_prunable(key))


def test_a_training_that_diverges_says_so(mixtral: Checkpoint, prune: Prune, distillation: Make) -> None:
    pruned = prune(mixtral)
    before = pruned.weights()
    with pytest.raises(ValueError, match=r"recovery\.learning_rate=1e\+30: after 1 steps the loss is NaN"):
        distillation(learning_rate=1e30).recover(pruned)
    assert same(pruned.weights(), before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"epochs": 0},
        {"num_sequences": 0},
        {"batch_size": 0},
        {"max_grad_norm": 0.0},
        {"save_every": 0},
        {"expert_weight": -1.0},
        {"expert_weight": "balance"},
    ],
)
def test_settings_out_of_range_are_refused(distillation: Make, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        distillation(**wrong)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_streamed_teacher_teaches_the_same_and_is_not_held(
    mixtral: Checkpoint, prune: Prune, distillation: Make, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read at each forward pass of its layer, and again where a checkpointed layer is run once more."""
    pruned, streamed = prune(mixtral, name="memory"), prune(mixtral, name="stream")
    distillation(teacher="memory", gradient_checkpointing=checkpointing).recover(pruned)
    alive: list[weakref.ref[torch.nn.Module]] = []
    most = 0

    def read(layer: int) -> torch.nn.Module:
        nonlocal most
        teacher = OnDisk.teacher(streamed, layer)
        alive.append(weakref.ref(teacher))
        most = max(most, sum(reference() is not None for reference in alive))
        return teacher

    OnDisk = type(streamed)
    monkeypatch.setattr(streamed, "teacher", read)
    report = distillation(teacher="stream", gradient_checkpointing=checkpointing).recover(streamed)
    assert same(pruned.weights(), streamed.weights())
    assert len(alive) >= report["steps"] * 3 * (1 + checkpointing)
    assert most <= 2  # the one that was just used may still be there
