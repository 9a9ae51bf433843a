"""Matching hidden units: what an expert computes stays, and a renumbered copy is recognized."""

from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stun_exp.moe.align import align

LAYOUTS = [
    pytest.param(transposed, interleaved, gate, bias, id=name)
    for name, transposed, interleaved, gate, bias in [
        ("as stock models", False, False, True, False),
        ("with biases", False, False, True, True),
        ("transposed", True, False, True, False),
        ("interleaved", False, True, True, False),
        ("transposed, interleaved, with biases", True, True, True, True),
        ("without gate", False, False, False, True),
        ("transposed without gate", True, False, False, False),
    ]
]
layouts = pytest.mark.parametrize(("transposed", "interleaved", "gate", "bias"), LAYOUTS)
UNITS, SIZE = 5, 3


class Expert:
    """One expert, a row of weights for every hidden unit."""

    def __init__(self, seed: int, gate: bool, bias: bool):
        generator = torch.Generator().manual_seed(seed)
        self.gate_FD = torch.randn(UNITS, SIZE, generator=generator) if gate else None
        self.up_FD = torch.randn(UNITS, SIZE, generator=generator)
        self.down_FD = torch.randn(UNITS, SIZE, generator=generator)
        self.gate_bias_F, self.up_bias_F = torch.randn(2, UNITS, generator=generator) * bias
        self.down_bias_D = torch.randn(SIZE, generator=generator) * bias

    def renumbered(self, order: list[int]) -> "Expert":
        other = Expert(0, self.gate_FD is not None, False)
        for name in ("gate_FD", "up_FD", "down_FD", "gate_bias_F", "up_bias_F"):
            value = getattr(self, name)
            setattr(other, name, None if value is None else value[order])
        other.down_bias_D = self.down_bias_D
        return other


def fused(experts: list[Expert], transposed: bool, interleaved: bool, bias: bool) -> Any:
    """The experts as a model keeps them: fused 3-D tensors in one of the layouts that transformers knows."""

    def halves(gate: Tensor | None, up: Tensor) -> Tensor:
        if gate is None:
            return up
        return torch.stack([gate, up], dim=1).flatten(0, 1) if interleaved else torch.cat([gate, up])

    up_EOD = torch.stack([halves(expert.gate_FD, expert.up_FD) for expert in experts])
    down_EDF = torch.stack([expert.down_FD.T for expert in experts])
    has_gate = experts[0].gate_FD is not None
    name = "gate_up_proj" if has_gate else "up_proj"
    tensors = {name: up_EOD.mT if transposed else up_EOD, "down_proj": down_EDF.mT if transposed else down_EDF}
    if bias:
        tensors[f"{name}_bias"] = torch.stack(
            [halves(expert.gate_bias_F if has_gate else None, expert.up_bias_F) for expert in experts]
        )
        tensors["down_proj_bias"] = torch.stack([expert.down_bias_D for expert in experts])
    parameters = {key: nn.Parameter(value.contiguous(), requires_grad=False) for key, value in tensors.items()}
    return SimpleNamespace(
        **parameters,
        has_gate=has_gate,
        has_bias=bias,
        is_transposed=transposed,
        is_concatenated=not interleaved,
        named_parameters=lambda recurse: list(parameters.items()),
    )


def outputs(tensors: dict[str, Tensor], like: Any) -> Tensor:
    """What one expert gives for some tokens, worked out from its fused tensors unit by unit."""
    x_ND = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(9))
    name = "gate_up_proj" if like.has_gate else "up_proj"
    up_OD, down_DF = tensors[name], tensors["down_proj"]
    if like.is_transposed:
        up_OD, down_DF = up_OD.T, down_DF.T
    before_NO = x_ND @ up_OD.T + tensors.get(f"{name}_bias", 0)
    y_ND = torch.zeros(4, SIZE) + tensors.get("down_proj_bias", 0)
    for unit in range(UNITS):
        if not like.has_gate:
            hidden_N = nn.functional.silu(before_NO[:, unit])
        else:
            at, beside = (unit, unit + UNITS) if like.is_concatenated else (2 * unit, 2 * unit + 1)
            hidden_N = nn.functional.silu(before_NO[:, at]) * before_NO[:, beside]
        y_ND = y_ND + hidden_N[:, None] * down_DF[:, unit]
    return y_ND


@layouts
def test_a_renumbered_expert_is_recovered_bit_for_bit(
    transposed: bool, interleaved: bool, gate: bool, bias: bool
) -> None:
    """An expert and its copy with permuted hidden units, after a stranger: aligned, the copy is the original."""
    original = Expert(1, gate, bias)
    pair = [Expert(2, gate, bias), original, original.renumbered([3, 0, 4, 1, 2])]
    experts = fused(pair, transposed, interleaved, bias)
    aligned = align(experts, reference=1, member=2)
    stored = dict(experts.named_parameters(recurse=False))
    assert aligned.keys() == stored.keys()
    assert not any(torch.equal(stored[name][2], stored[name][1]) for name in stored if name != "down_proj_bias")
    assert all(torch.equal(aligned[name], stored[name][1]) for name in stored)


@layouts
def test_what_an_expert_computes_stays(transposed: bool, interleaved: bool, gate: bool, bias: bool) -> None:
    """Units change places in all tensors or in none; guards against a bias or a half that is left behind."""
    experts = fused([Expert(1, gate, bias), Expert(2, gate, bias)], transposed, interleaved, bias)
    member = {name: tensor[1] for name, tensor in experts.named_parameters(recurse=False)}
    aligned = align(experts, reference=0, member=1)
    assert not torch.equal(aligned["down_proj"], member["down_proj"])
    torch.testing.assert_close(outputs(aligned, experts), outputs(member, experts))


@layouts
def test_no_permutation_matches_better(transposed: bool, interleaved: bool, gate: bool, bias: bool) -> None:
    """All 120 orders of five units: the largest inner product of the weights, gate, up and down together."""
    reference, member = Expert(1, gate, bias), Expert(2, gate, bias)

    def match(a: Expert, b: Expert) -> float:
        names = ["up_FD", "down_FD"] + ["gate_FD"] * gate
        return sum(float((getattr(a, name) * getattr(b, name)).sum()) for name in names)

    best = max(permutations(range(UNITS)), key=lambda order: match(reference, member.renumbered(list(order))))
    expected = fused([member.renumbered(list(best))], transposed, interleaved, bias)
    aligned = align(fused([reference, member], transposed, interleaved, bias), reference=0, member=1)
    for name, tensor in expected.named_parameters(recurse=False):
        assert torch.equal(aligned[name], tensor[0])
