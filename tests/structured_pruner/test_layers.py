"""Which layers go, by what they change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.checkpoint.restructured import RestructuredWriter, restructured_config
from stun_exp.moe.observe import observe
from stun_exp.moe.statistics import HiddenStates
from stun_exp.streaming.walk import Walk
from stun_exp.structured_pruner.layers import Layers
from stun_exp.structured_pruner.protocol import Cuts

CPU = torch.device("cpu")


def decided(source: Checkpoint, pruner: Layers, tokens_BT: torch.Tensor, idle: int | None = None) -> Cuts:
    """What the pruner makes of the model, in which the layer `idle` changes nothing."""
    walk = Walk(source, [tokens_BT[:2], tokens_BT[2:]], CPU, "test")
    walk.edit = lambda layer: silence(layer) if layer.index == idle else None
    findings = []
    for step in walk:
        statistics = pruner.statistics(step.layer)
        with observe(step.layer, statistics):
            step.forward()
        findings.append(pruner.examine(step.layer, statistics))
    return pruner.plan(findings)


def silence(layer: Any) -> None:
    for path in ("self_attn.o_proj", "mlp.down_proj"):
        layer.module.get_submodule(path).weight.detach().zero_()


@pytest.fixture
def llama(tiny_model: Callable[[str], Path]) -> Checkpoint:
    return Checkpoint(tiny_model("llama"), None)


@pytest.mark.parametrize("idle", [0, 1, 2])
@pytest.mark.parametrize("by", ["influence", "angle"])
def test_a_layer_that_changes_nothing_has_no_influence_and_goes(
    llama: Checkpoint, tokens_BT: torch.Tensor, by: Any, idle: int
) -> None:
    cuts = decided(llama, Layers(ratio=0.33, by=by), tokens_BT, idle)
    assert [cut.dropped for cut in cuts.layers] == [layer == idle for layer in range(3)]
    # The angle goes through an arc cosine, which is steep at 1.
    assert cuts.facts["scores"][str(idle)] < (1e-9 if by == "influence" else 1e-3)


def test_without_a_layer_that_changes_nothing_no_logit_changes(
    llama: Checkpoint, tokens_BT: torch.Tensor, tmp_path: Path
) -> None:
    cuts = decided(llama, Layers(ratio=0.33, by="influence"), tokens_BT, 1)
    writer = RestructuredWriter(llama, tmp_path / "written", restructured_config(llama, cuts.layers))
    for index in (0, 2):
        writer.write_layer(llama.read_layer(index))
    writer.finish()
    whole = load_checkpoint(llama.path, CPU)
    silenced = llama.read_layer(1)
    silence(silenced)
    whole.set_submodule(llama.paths[1], silenced.module)
    with torch.inference_mode():
        expected = whole(input_ids=tokens_BT).logits
        found = load_checkpoint(writer.path, CPU)(input_ids=tokens_BT).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_influence_and_last_tokens_by_hand() -> None:
    """A token that is kept, one that is turned by 90 degrees, one that is turned around: 1 - (1 + 0 - 1) / 3."""
    seen = HiddenStates()
    seen.layer(torch.tensor([[[1.0, 0], [1, 0], [1, 0]]]), torch.tensor([[[2.0, 0], [0, 3], [-1, 0]]]))
    assert seen.influence() == pytest.approx(1.0)
    before, after = seen.last_tokens()
    assert (before.tolist(), after.tolist()) == ([[1, 0]], [[-1, 0]])


def test_the_block_with_the_smallest_angle_goes() -> None:
    """Of four layers the second turns by 90 degrees and the third turns back: together they change nothing."""
    pruner = Layers(ratio=0.5, by="angle")
    hidden = [torch.tensor([[1.0, 0]]), torch.tensor([[1.0, 1]]), torch.tensor([[-1.0, 1]]), torch.tensor([[1.0, 1]])]
    hidden.append(torch.tensor([[0.0, -1]]))
    from stun_exp.structured_pruner.layers import _Finding

    findings = [_Finding(layer, 0.0, hidden[layer], hidden[layer + 1]) for layer in range(4)]
    cuts = pruner.plan(findings)
    assert cuts.facts["removed_layers"] == [1, 2]
    assert cuts.facts["scores"]["1"] == pytest.approx(0, abs=1e-3)
    assert cuts.facts["scores"]["0"] == pytest.approx(0.75)


def test_less_than_half_a_layer_takes_one_and_says_so(llama: Checkpoint, tokens_BT: torch.Tensor) -> None:
    pruner = Layers(ratio=0.05, by="influence")
    assert pruner.expected_share(llama.outlines) == pytest.approx(1 / 3)
    (warning,) = decided(llama, pruner, tokens_BT).warnings
    assert warning.startswith("structured_pruner.ratio=0.05 is less than half a layer; one of the 3 goes")


def test_all_layers_cannot_go(llama: Checkpoint) -> None:
    with pytest.raises(ValueError, match=r"structured_pruner.ratio=0.9 would take all of the 3 layers"):
        Layers(ratio=0.9, by="influence").check(llama.outlines, 1)


def test_layers_with_experts_stay(mixtral: Checkpoint) -> None:
    with pytest.raises(ValueError, match="structured_pruner=layers: layer 0 has experts"):
        Layers(ratio=0.3, by="influence").check(mixtral.outlines, 1)
