"""MoE-Pruner: Wanda whose tokens count as much as the router counts them."""

import pytest
import torch
from torch import Tensor

from stun_exp.unstructured_pruner.moe_pruner import MoEPruner
from stun_exp.unstructured_pruner.protocol import Task
from stun_exp.unstructured_pruner.wanda import Wanda

SETTINGS = {
    "attention": True,
    "group": "row",
    "pattern": "unstructured",
    "inputs": "pruned",
    "min_tokens": 1,
    "starved": "every_token",
}
MOE_PRUNER, WANDA = MoEPruner(**SETTINGS), Wanda(**SETTINGS)


def pruned(pruner: Wanda, weight_OC: Tensor, x_NC: Tensor, gate_N: Tensor | None, ratio: float = 0.5) -> Tensor:
    statistic = pruner.statistic(weight_OC.shape[1])
    statistic.update(x_NC, gate_N)
    result = weight_OC.clone()
    assert pruner.prune_([Task("matrix", result, statistic, ratio)]) == []
    return result


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_two_experts_by_hand() -> None:
    """Two experts with the same weights, (1.5, 1), and the same two tokens, (5, 0) and (5, 10).

    Gates 0.6 and 0.8 make the first's inputs (3, 0) and (4, 8), of norms 5 and 8: saliencies 7.5 < 8. Gates 0.4 and
    0.2 make the second's (2, 0) and (1, 2), of norms 2.24 and 2: saliencies 3.35 > 2. Wanda sees norms 7.07 and 10 in
    both: 10.6 > 10.
    """
    weight, x = torch.tensor([[1.5, 1.0]]), torch.tensor([[5.0, 0.0], [5.0, 10.0]])
    first, second = torch.tensor([0.6, 0.8]), torch.tensor([0.4, 0.2])
    assert pruned(MOE_PRUNER, weight, x, first).tolist() == [[0.0, 1.0]]
    assert pruned(MOE_PRUNER, weight, x, second).tolist() == [[1.5, 0.0]]
    assert pruned(WANDA, weight, x, first).tolist() == pruned(WANDA, weight, x, second).tolist() == [[1.5, 0.0]]


def test_saliencies_by_hand() -> None:
    statistic = MOE_PRUNER.statistic(2)
    statistic.update(torch.tensor([[5.0, 0.0], [5.0, 10.0]]), torch.tensor([0.6, 0.8]))
    saliency = MOE_PRUNER.saliency(torch.tensor([[1.5, -1.0], [0.0, 2.0]]), statistic)
    assert saliency.flatten().tolist() == pytest.approx([7.5, 8, 0, 16])


def test_gates_of_one_are_wanda() -> None:
    weight, x = normal(6, 10), normal(30, 10, seed=1)
    assert torch.equal(pruned(MOE_PRUNER, weight, x, torch.ones(30)), pruned(WANDA, weight, x, torch.ones(30)))


def test_without_gates_it_is_wanda() -> None:
    """Attention and shared experts see every token unweighted."""
    weight, x = normal(6, 10), normal(30, 10, seed=1)
    assert torch.equal(pruned(MOE_PRUNER, weight, x, None), pruned(WANDA, weight, x, None))


def test_equal_gates_choose_as_wanda_and_others_do_not() -> None:
    """A common factor of an expert changes no comparison within it; Wanda itself never looks at gates."""
    weight, x = normal(20, 32), normal(30, 32, seed=1)
    gates = torch.rand(30, generator=torch.Generator().manual_seed(2))
    assert torch.equal(pruned(MOE_PRUNER, weight, x, torch.full((30,), 0.25)), pruned(WANDA, weight, x, gates))
    assert not torch.equal(pruned(MOE_PRUNER, weight, x, gates), pruned(WANDA, weight, x, gates))


def test_equals_a_plain_loop() -> None:
    """|W_ij| times the root of the sum over tokens of (x_tj g_t)^2, as the paper writes it."""
    weight, x, gates = normal(6, 10), normal(30, 10, seed=1), torch.rand(30, generator=torch.Generator().manual_seed(2))
    statistic = MOE_PRUNER.statistic(10)
    for batch, gate in zip(x.split(7), gates.split(7), strict=True):
        statistic.update(batch, gate)
    found = MOE_PRUNER.saliency(weight, statistic)
    for i in range(6):
        for j in range(10):
            norm = sum((float(x[t, j]) * float(gates[t])) ** 2 for t in range(30)) ** 0.5
            assert float(found[i, j]) == pytest.approx(abs(float(weight[i, j])) * norm, rel=1e-5)


def test_half_precision_gates_are_squared_in_fp32() -> None:
    """A gate of 0.0001 squared is 0 in fp16."""
    statistic = MOE_PRUNER.statistic(1)
    statistic.update(torch.ones(4, 1, dtype=torch.float16), torch.full((4,), 1e-4, dtype=torch.float16))
    assert float(statistic.norm_C()) == pytest.approx(2e-4, rel=1e-2)
