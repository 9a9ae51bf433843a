"""Walking a checkpoint layer by layer is running the whole model."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.streaming.walk import Walk

CPU = torch.device("cpu")


def hidden_states(checkpoint: Checkpoint, tokens_BT: Tensor) -> tuple[Tensor, ...]:
    """The whole model's: the input of each layer, then the output of the last after the final norm."""
    with torch.inference_mode():
        states: tuple[Tensor, ...] = load_checkpoint(checkpoint.path, CPU)(
            tokens_BT, output_hidden_states=True
        ).hidden_states
    return states


def test_streamed_equals_whole(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    """Batches of different size and length: the last one is often smaller, and masks depend on the length."""
    batches_BT = [tokens_BT[:3], tokens_BT[3:], tokens_BT[:2, :20], tokens_BT[1:4]]
    whole = [hidden_states(checkpoint, batch) for batch in batches_BT]
    for step in Walk(checkpoint, batches_BT, CPU, "test"):
        for streamed_BTD, states in zip(step.hidden_BTD, whole, strict=True):
            torch.testing.assert_close(streamed_BTD, states[step.layer.index], rtol=1e-5, atol=1e-5)
    step.forward()
    final_norm = checkpoint.read_shell().model.norm
    for streamed_BTD, states in zip(step.outputs_BTD or [], whole, strict=True):
        torch.testing.assert_close(final_norm(streamed_BTD), states[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "window"),
    [
        ("mixtral", {"sliding_window": 4}),
        # Layers of two kinds in one model: each must get its own mask.
        (
            "qwen2_moe",
            {
                "sliding_window": 4,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
        ),
    ],
)
def test_streamed_equals_whole_with_sliding_windows(
    tiny_model: Callable[[str], Path], tmp_path: Path, tokens_BT: Tensor, family: str, window: dict[str, Any]
) -> None:
    copy = Path(copytree(tiny_model(family), tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text()) | window
    (copy / "config.json").write_text(json.dumps(config))
    states = hidden_states(Checkpoint(copy, None), tokens_BT)
    for step in Walk(Checkpoint(copy, None), [tokens_BT], CPU, "test"):
        torch.testing.assert_close(step.hidden_BTD[0], states[step.layer.index], rtol=1e-5, atol=1e-5)
    full = hidden_states(Checkpoint(tiny_model(family), None), tokens_BT)
    assert not torch.allclose(states[2], full[2], atol=1e-3)  # the window is in force


def test_a_changed_layers_new_outputs_feed_the_next(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    """Sequential pruning: the next layer is calibrated on what its predecessor has become."""
    model = load_checkpoint(checkpoint.path, CPU)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
    with torch.inference_mode():
        expected = model(tokens_BT, output_hidden_states=True).hidden_states[1]
    for step in Walk(checkpoint, [tokens_BT], CPU, "test"):
        if step.layer.index == 0:
            step.forward()
            step.layer.module.self_attn.o_proj.weight.zero_()
            step.changed()
        if step.layer.index == 1:
            torch.testing.assert_close(step.hidden_BTD[0], expected, rtol=1e-5, atol=1e-5)


def test_an_edit_is_applied_before_the_layer_runs(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    walk = Walk(mixtral, [tokens_BT], CPU, "test")
    walk.edit = lambda layer: layer.regroup([[0], [4]])
    assert [step.layer.num_experts for step in walk] == [2, 2, 2]
    assert mixtral.outline(0).num_experts == 6


@pytest.mark.parametrize(
    ("observe", "change", "layer_passes"),
    [
        (False, False, 2),  # each layer but the last is run to feed the next
        (True, False, 3),  # its outputs are used again
        (True, True, 5),  # run before and after the change, the last only before
    ],
)
def test_forward_passes_counts_layers_run_over_layers(
    mixtral: Checkpoint, tokens_BT: Tensor, observe: bool, change: bool, layer_passes: int
) -> None:
    walk = Walk(mixtral, [tokens_BT], CPU, "test")
    for step in walk:
        if observe:
            step.forward()
        if change:
            step.changed()
    assert walk.forward_passes == pytest.approx(layer_passes / 3)


def test_leaving_a_walk_early_leaves_inference_mode(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    """The walk yields inside the mode; a caller that stops must not be left without gradients."""
    for _ in Walk(mixtral, [tokens_BT], CPU, "test"):
        break
    assert not torch.is_inference_mode_enabled()


def test_a_walk_does_not_change_the_files(mixtral_copy: Path, tokens_BT: Tensor) -> None:
    before = (mixtral_copy / "model.safetensors").read_bytes()
    for step in Walk(Checkpoint(mixtral_copy, None), [tokens_BT], CPU, "test"):
        for matrix in step.layer.matrices():
            matrix.weight_OC.zero_()
    assert (mixtral_copy / "model.safetensors").read_bytes() == before
