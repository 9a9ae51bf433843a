"""Parts of a dense layer go as a whole, and what stays computes what it did."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.moe.coupled import LayerCut, coupled_of, cut_, out_columns, sizes_of
from stun_exp.moe.families import DENSE, FAMILIES
from stun_exp.moe.layers import MoELayer
from stun_exp.streaming.walk import Walk

CPU = torch.device("cpu")
WITH_HEADS = [name for name in DENSE if FAMILIES[name].coupled is not None and FAMILIES[name].coupled.heads]
UNITS = [0, 3, 4, 9, 23]


@pytest.fixture
def source(name: str, tiny_model: Callable[[str], Path]) -> Checkpoint:
    return Checkpoint(tiny_model(name), None)


def output(source: Checkpoint, change: Callable[[MoELayer], None], tokens_BT: Tensor) -> Tensor:
    """What the second layer gives once it was changed."""
    for step in Walk(source, [tokens_BT], CPU, "test"):
        if step.layer.index == 1:
            change(step.layer)
            step.forward()
            assert step.outputs_BTD is not None
            return step.outputs_BTD[0]
    raise AssertionError


@pytest.mark.parametrize("name", DENSE)
def test_a_layer_consists_of_its_parts(name: str, source: Checkpoint) -> None:
    """But for attention that goes as a whole or not at all."""
    layer = source.outline(1)
    sizes = sizes_of(layer)
    assert sizes.units == 24
    weights = {"attention": 0, "mlp": 0}
    for matrix in layer.matrices():
        weights[matrix.kind] += matrix.weight_OC.numel()
    assert sizes.units * sizes.unit_weights == weights["mlp"]
    assert sizes.groups * sizes.group_weights == (weights["attention"] if name in WITH_HEADS else 0)


@pytest.mark.parametrize("name", DENSE)
def test_without_hidden_units_is_with_them_unread(name: str, source: Checkpoint, tokens_BT: Tensor) -> None:
    gone = [unit for unit in range(24) if unit not in UNITS]

    def unread(layer: MoELayer) -> None:
        layer.module.get_submodule(coupled_of(layer).down).weight.detach()[:, gone] = 0

    cut = output(source, lambda layer: cut_(layer, LayerCut(1, units=UNITS)), tokens_BT)
    torch.testing.assert_close(cut, output(source, unread, tokens_BT), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(cut, output(source, lambda layer: None, tokens_BT), atol=1e-2)


@pytest.mark.parametrize("name", WITH_HEADS)
def test_without_heads_is_with_them_unread(name: str, source: Checkpoint, tokens_BT: Tensor) -> None:
    """Two heads share keys and values here, and go together."""

    def unread(layer: MoELayer) -> None:
        heads = coupled_of(layer).heads
        assert heads is not None
        layer.module.get_submodule(heads[3]).weight.detach()[:, out_columns(layer, [0])] = 0

    cut = output(source, lambda layer: cut_(layer, LayerCut(1, groups=[1])), tokens_BT)
    torch.testing.assert_close(cut, output(source, unread, tokens_BT), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(cut, output(source, lambda layer: None, tokens_BT), atol=1e-3)


@pytest.mark.parametrize("name", DENSE)
def test_the_order_of_hidden_units_is_of_no_effect(name: str, source: Checkpoint, tokens_BT: Tensor) -> None:
    whole = output(source, lambda layer: None, tokens_BT)
    turned = output(source, lambda layer: cut_(layer, LayerCut(1, units=list(reversed(range(24))))), tokens_BT)
    torch.testing.assert_close(turned, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mixtral"])
def test_layers_with_experts_have_no_such_parts(name: str, source: Checkpoint) -> None:
    with pytest.raises(ValueError, match="no parts of model_type=mixtral are known"):
        sizes_of(source.outline(1))
