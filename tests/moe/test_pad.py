"""Experts that fill a layer: never chosen, whatever the token, and all else as it was."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.moe.families import FAMILIES
from stun_exp.moe.layers import MoELayer

BARRING = ["deepseek_v3", "dots1", "glm4_moe", "gpt_oss"]
FOUR = [[0], [2], [3], [5]]


def padded(folder: Path, dtype: torch.dtype | None = None) -> tuple[MoELayer, MoELayer]:
    """A layer that keeps 4 of 6 experts, and the same filled up to 6 again."""
    source = Checkpoint(folder, dtype)
    layers = source.read_layer(2), source.read_layer(2)
    for layer in layers:
        layer.regroup(FOUR)
    layers[1].pad(6)
    return layers


def test_the_families_whose_routers_can_refuse(tiny_model: Callable[[str], Path]) -> None:
    """Switch Transformers' has no bias unless its config asks for one, and Ernie's softmax is over all experts."""
    found = [name for name in FAMILIES if any(layer.is_moe and layer.can_bar for layer in outlines(tiny_model(name)))]
    assert found == BARRING


def outlines(folder: Path) -> list[MoELayer]:
    return Checkpoint(folder, None).outlines


def kept_places(layer: MoELayer) -> list[int]:
    """Where the four are when two more are added: with two groups, at the beginning of each."""
    return [0, 1, 3, 4] if layer.num_groups == 2 else [0, 1, 2, 3]


def hidden(layer: MoELayer, scale: float) -> Tensor:
    width = layer.router_rows_ED().shape[1]
    return scale * torch.randn(500, width, generator=torch.Generator().manual_seed(0)).to(layer.experts.down_proj.dtype)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", BARRING)
def test_filling_is_never_chosen(name: str, dtype: torch.dtype | None, tiny_model: Callable[[str], Path]) -> None:
    """However little a token takes to all others: their biases here are far below any that training gives."""
    before, after = padded(tiny_model(name), dtype)
    assert before.family.barring is not None
    after.router_tensors()[before.family.barring].data[kept_places(before)] -= 1000
    _, _, index_TK = after.router(hidden(after, 30))
    assert {*index_TK.flatten().tolist()} == {*kept_places(before)}


@pytest.mark.parametrize("name", BARRING)
def test_the_choice_and_the_gates_are_those_without_filling(name: str, tiny_model: Callable[[str], Path]) -> None:
    before, after = padded(tiny_model(name))
    hidden_TD = hidden(before, 1)
    places_E = torch.tensor(kept_places(before))
    gates = []
    for layer, place_E in ((before, places_E), (after, torch.arange(6))):
        _, weight_TK, index_TK = layer.router(hidden_TD)
        gates.append(torch.zeros(len(hidden_TD), 6).scatter_(1, place_E[index_TK], weight_TK))
    assert torch.equal(gates[0] > 0, gates[1] > 0)
    # A router of six rows may take another kernel than one of four, which differs in the last digits.
    torch.testing.assert_close(*gates, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BARRING)
def test_filling_is_zeros_and_a_finite_bias(name: str, tiny_model: Callable[[str], Path]) -> None:
    before, after = padded(tiny_model(name))
    kept = kept_places(before)
    added = sorted(set(range(6)) - set(kept))
    assert (before.num_experts, after.num_experts) == (4, 6)
    was = before.module.state_dict()
    for path, tensor in after.module.state_dict().items():
        own = path.removeprefix(f"{before.router_path}.")
        if own == before.family.barring:
            assert tensor.isfinite().all()
            assert (tensor[added] < -1e38).all()
            assert torch.equal(tensor[kept], was[path])
        elif own in before.family.router_rows or path.startswith(f"{before.block_path}.experts."):
            assert not tensor[added].any()
            assert torch.equal(tensor[kept], was[path]), path
        else:
            assert torch.equal(tensor, was[path]), path
