"""Lu's threshold, worked by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stun_exp.moe.skip import GateRatios, kept_TK
from stun_exp.skipping.dynamic import DynamicSkipping


def ratios(*batches: list[list[float]]) -> GateRatios:
    statistic = GateRatios()
    for gates in batches:
        statistic.routing(torch.empty(0), torch.empty(0), torch.tensor(gates))
    return statistic


def test_beta_is_the_median_of_the_second_gate_over_the_first() -> None:
    """1/4, 2/3 and 1, over two batches and whichever gate is named first; the mean would be 0.64."""
    found = ratios([[0.6, 0.4], [0.2, 0.8]], [[0.5, 0.5]])
    assert DynamicSkipping().beta(found) == pytest.approx(2 / 3)


def test_of_an_even_number_of_tokens_it_is_the_mean_of_the_middle_two() -> None:
    """torch's median is the lower of the two, at which one token fewer would skip."""
    found = ratios([[1.0, 0.1], [1.0, 0.2], [1.0, 0.4], [1.0, 0.9]])
    assert DynamicSkipping().beta(found) == pytest.approx(0.3)
    assert found.skipped(0.3) == 2 / 8


def test_with_more_experts_it_is_the_last_gate_over_the_sum_of_the_others() -> None:
    """2/8, 1/9 and 3/7 (of the last gate, not of the second: those would be 3/5, 4/5 and 3/4)."""
    found = ratios([[5.0, 3.0, 2.0], [5.0, 4.0, 1.0], [4.0, 3.0, 3.0]])
    assert DynamicSkipping().beta(found) == pytest.approx(2 / 8)


@pytest.mark.parametrize("top_k", [2, 4, 8])
def test_half_of_the_calibration_tokens_skip_at_least_one_expert(top_k: int) -> None:
    gates_TK = torch.rand(1000, top_k, generator=torch.Generator().manual_seed(top_k)) + 0.01
    found = ratios(gates_TK[:300].tolist(), gates_TK[300:].tolist())
    kept = kept_TK(gates_TK, DynamicSkipping().beta(found))
    assert int((kept.sum(1) < top_k).sum()) == 500
    assert found.skipped(DynamicSkipping().beta(found)) == pytest.approx(1 - float(kept.float().mean()))


def test_the_general_rule_is_the_papers_with_another_beta() -> None:
    """tail <= b total is tail <= b / (1 - b) head: b = 0.2 of 10 is a tail of at most 2, b / (1 - b) of 8 as well."""
    b = 0.2
    for tail, keeps in ((1.9, 2), (2.1, 3)):
        gates_TK = torch.tensor([[5.0, 5.0 - tail, tail]])
        total, last = float(gates_TK.sum()), float(gates_TK[0, -1])
        assert (last <= b * total) is (keeps == 2)
        assert int(kept_TK(gates_TK, b / (1 - b)).sum()) == keeps


def test_a_router_that_chooses_one_expert_is_refused() -> None:
    layer: Any = SimpleNamespace(index=3, top_k=1)
    with pytest.raises(ValueError, match=r"skipping=dynamic: the router of layer 3 .*top_k=1.*pass skipping=none"):
        DynamicSkipping().statistic(layer)
