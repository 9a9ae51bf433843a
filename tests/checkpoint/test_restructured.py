"""A dense model with fewer parts, written and read back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from stun_exp.checkpoint.architecture import WIDTHS_PER_LAYER
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.checkpoint.restructured import RestructuredWriter, restructured_config
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.moe.coupled import LayerCut, coupled_of, cut_
from stun_exp.moe.families import DENSE, FAMILIES

CPU = torch.device("cpu")
WITH_HEADS = [name for name in DENSE if FAMILIES[name].coupled is not None and FAMILIES[name].coupled.heads]


@pytest.fixture
def source(name: str, tiny_model: Callable[[str], Path]) -> Checkpoint:
    return Checkpoint(tiny_model(name), None)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Checkpoint, list[LayerCut]], Checkpoint]:
    """(source, cuts) -> what is written of it."""

    def write(source: Checkpoint, cuts: list[LayerCut]) -> Checkpoint:
        writer = RestructuredWriter(source, tmp_path / "restructured", restructured_config(source, cuts))
        for cut in cuts:
            if not cut.dropped:
                layer = source.read_layer(cut.layer)
                cut_(layer, cut)
                writer.write_layer(layer)
        writer.finish()
        assert {file.name for file in writer.path.iterdir()} == set(writer.names())
        return Checkpoint(writer.path, None)

    return write


def logits(model: torch.nn.Module, tokens_BT: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.eval()(input_ids=tokens_BT).logits
    return found


def expected(source: Checkpoint, cuts: list[LayerCut], tokens_BT: Tensor) -> Tensor:
    """The logits of the source with its layers cut in memory; one that is dropped gives what it gets."""
    model = load_checkpoint(source.path, CPU)
    for cut in cuts:
        layer = source.read_layer(cut.layer)
        if cut.dropped:
            for path in (coupled_of(layer).down, (coupled_of(layer).heads or ("",) * 4)[3]):
                layer.module.get_submodule(path).weight.detach().zero_()
        else:
            cut_(layer, cut)
        model.set_submodule(source.paths[cut.layer], layer.module)
    return logits(model, tokens_BT)


@pytest.mark.parametrize("name", DENSE)
def test_equally_narrow_layers_load_in_stock_transformers(
    name: str, source: Checkpoint, write: Callable[..., Checkpoint], tokens_BT: Tensor
) -> None:
    groups = [1] if name in WITH_HEADS else None
    cuts = [LayerCut(layer, [2, 3, 5, 7 + layer], groups) for layer in range(3)]
    written = write(source, cuts)
    assert WIDTHS_PER_LAYER not in written.raw
    wanted = expected(source, cuts, tokens_BT)
    torch.testing.assert_close(logits(load_checkpoint(written.path, CPU), tokens_BT), wanted, rtol=1e-5, atol=1e-5)
    stock = AutoModelForCausalLM.from_pretrained(written.path)
    torch.testing.assert_close(logits(stock, tokens_BT), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DENSE)
def test_layers_of_different_widths_are_read_back_and_written_again(
    name: str, source: Checkpoint, write: Callable[..., Checkpoint], tokens_BT: Tensor, tmp_path: Path
) -> None:
    cuts = [LayerCut(0, [1, 2, 3]), LayerCut(1), LayerCut(2, range(20), [0] if name in WITH_HEADS else None)]
    written = write(source, cuts)
    wanted = expected(source, cuts, tokens_BT)
    torch.testing.assert_close(logits(load_checkpoint(written.path, CPU), tokens_BT), wanted, rtol=1e-5, atol=1e-5)
    writer = CheckpointWriter(written, tmp_path / "again")
    for index in range(3):
        writer.write_layer(written.read_layer(index))
    writer.finish()
    again = load_checkpoint(writer.path, CPU)
    assert torch.equal(logits(again, tokens_BT), logits(load_checkpoint(written.path, CPU), tokens_BT))


@pytest.mark.parametrize("name", WITH_HEADS)
def test_a_dropped_layer_is_one_that_hands_on_what_it_gets(
    name: str, source: Checkpoint, write: Callable[..., Checkpoint], tokens_BT: Tensor
) -> None:
    """And what config.json says of each layer goes with it: kinds of attention, layers without positions."""
    cuts = [LayerCut(0), LayerCut(1, dropped=True), LayerCut(2)]
    written = write(source, cuts)
    assert written.num_layers == 2
    wanted = expected(source, cuts, tokens_BT)
    torch.testing.assert_close(logits(load_checkpoint(written.path, CPU), tokens_BT), wanted, rtol=1e-5, atol=1e-5)
    stock = AutoModelForCausalLM.from_pretrained(written.path)
    torch.testing.assert_close(logits(stock, tokens_BT), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "opt", "qwen3"])
def test_a_bias_is_written_where_the_architecture_can_hold_one(
    name: str, source: Checkpoint, write: Callable[..., Checkpoint], tokens_BT: Tensor
) -> None:
    """In all layers, since its flag is one for all; stock transformers reads it."""
    heads = coupled_of(source.outline(0)).heads
    path = heads[3] if name == "qwen3" and heads else coupled_of(source.outline(0)).down
    cuts = [LayerCut(0, [1, 2], biases={path: torch.arange(16.0) / 8}), LayerCut(1, [1, 2]), LayerCut(2, [1, 2])]
    written = write(source, cuts)
    wanted = expected(source, cuts, tokens_BT)
    stock = AutoModelForCausalLM.from_pretrained(written.path)
    torch.testing.assert_close(logits(stock, tokens_BT), wanted, rtol=1e-5, atol=1e-5)
    without = expected(source, [LayerCut(layer, [1, 2]) for layer in range(3)], tokens_BT)
    assert not torch.allclose(wanted, without, atol=1e-2)


@pytest.mark.parametrize("name", ["llama"])
@pytest.mark.parametrize("widths", [[[3, 1]], "wide", [[3], [3], [3]], [[-1, 1]] * 3])
def test_widths_that_are_none_are_refused(
    name: str, source: Checkpoint, write: Callable[..., Checkpoint], widths: object
) -> None:
    written = write(source, [LayerCut(0, [1, 2, 3]), LayerCut(1), LayerCut(2)])
    config = json.loads((written.path / "config.json").read_text()) | {WIDTHS_PER_LAYER: widths}
    (written.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="widths_per_layer must be a list of"):
        _ = Checkpoint(written.path, None).skeleton
