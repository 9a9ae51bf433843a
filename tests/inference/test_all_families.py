"""Every family can be measured: its cache, its router, its way to generate."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.inference.measure import MeasureInference
from stun_exp.inference.protocol import Compared
from stun_exp.moe.families import DENSE, FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_measured(
    family: str,
    tiny_model: Callable[[str], Path],
    compared: Callable[[Mapping[str, Checkpoint]], Compared],
    small: Callable[..., MeasureInference],
) -> None:
    checkpoint = Checkpoint(tiny_model(family), None)
    found = small().measure(compared({"unpruned": checkpoint}))
    (one,) = found.models
    assert one.kv_bytes_per_token > 0
    assert [speed.decode.median > 0 for speed in one.speed] == [True, True]
    if family in DENSE:
        assert (one.num_experts, one.experts_hit) == (0, [])
        return
    if len(FAMILIES[family].stacks) == 1:  # elsewhere some tokens are over capacity
        top_k = [layer.top_k for layer in checkpoint.outlines if layer.is_moe]
        assert one.experts_hit[0].decode == pytest.approx(sum(top_k) / len(top_k))
    assert one.experts_hit[0].decode <= one.experts_hit[1].decode <= one.experts_hit[1].prefill <= one.num_experts
