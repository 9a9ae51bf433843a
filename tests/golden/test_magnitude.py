"""Magnitude: masks of the published code, and its counts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from published_masks import NEVER_ROUTED, PATTERNS, half, one_too_many, pruned
from torch import Tensor

from stun_exp.unstructured_pruner.magnitude import Magnitude

Masks = Callable[[str], dict[str, Tensor]]
Build = Callable[..., Any]


@pytest.mark.parametrize(("variant", "ratio_of"), [("unstructured50", one_too_many), ("2_4", half)])
def test_magnitudes_masks(
    variant: str, ratio_of: Callable[[int], float], walked: Any, masks: Masks, configured: Build
) -> None:
    """The weights alone decide, so no rounding is between us."""
    pruner = configured(Magnitude, "unstructured_pruner/magnitude", pattern=PATTERNS[variant])
    expected = masks(f"magnitude.{variant}")
    compared = 0
    for _, zeros in pruned(walked, pruner, ratio_of, expected):
        for name, ours in zeros.items():
            assert torch.equal(ours, expected[name]), name
            compared += 1
    assert compared == 3 * 29


@pytest.mark.parametrize("variant", ["magnitude.unstructured50", "sparsegpt.unstructured50"])
def test_published_counts_are_one_too_many(variant: str, masks: Masks) -> None:
    """Ours are the asked ones: 2,048 of 4,096, where the published code takes 2,049."""
    counts = {
        (mask.numel(), int(mask.sum())) for name, mask in masks(variant).items() if not name.startswith(NEVER_ROUTED)
    }
    assert counts == {(size, size // 2 + 1) for size in (512, 2048, 4096, 6144)}
