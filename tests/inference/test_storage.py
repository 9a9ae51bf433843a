"""Bytes of weights, and of formats that would leave zeros out, worked by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.inference.storage import (
    MatrixZeros,
    active_parameters,
    bitmask_bytes,
    cache_bytes,
    disk_bytes,
    fill_zeros_,
    is_two_four,
    storage_formats,
    two_four_bytes,
    weight_bytes,
    zeros_of,
)


@pytest.mark.parametrize(("percent", "expected"), [(40, 1.325), (50, 1.125), (65, 0.825)])
def test_bytes_of_a_bf16_weight_behind_a_bitmask(percent: int, expected: float) -> None:
    """An eighth of a byte, and two for each that is not zero."""
    assert bitmask_bytes(MatrixZeros(1000, 10 * percent, False), 2) / 1000 == pytest.approx(expected)


def test_bytes_of_a_bf16_weight_in_2_4() -> None:
    """Half of the weights in two bytes, and two bits for the place of each."""
    assert two_four_bytes(MatrixZeros(1000, 500, True), 2) / 1000 == pytest.approx(1.125)


def test_formats_count_each_matrix_by_its_own_zeros() -> None:
    """Of 400 parameters 300 in matrices: half zeros, 2:4; no zeros, which a bitmask only makes larger; 90 % zeros.

    Dense 800 bytes. Bitmask: 112.5 + 200 + 32.5, and 200 outside. 2:4: 112.5, and 600 that stay.
    """
    matrices = [MatrixZeros(100, 50, True), MatrixZeros(100, 0, False), MatrixZeros(100, 90, False)]
    found = storage_formats(matrices, 400, 2)
    assert (found.dense, found.bitmask, found.two_four) == (800.0, 545.0, 712.5)
    assert (found.num_matrices, found.num_two_four) == (3, 1)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1, 0, 0, 1, 0, 1, 1, 0], True),
        ([1, 0, 0, 0, 0, 0, 0, 0], True),
        ([1, 0, 1, 1, 0, 0, 0, 0], False),  # half of it is zero, in the wrong places
        ([1, 0, 0, 1, 0, 0], False),  # no fours
    ],
)
def test_the_2_4_pattern_is_two_zeros_in_every_four(row: list[int], expected: bool) -> None:
    assert is_two_four(torch.tensor([[0.0] * len(row), [float(entry) for entry in row]])) is expected


def test_zeros_are_counted_matrix_by_matrix_and_filled_with_next_to_nothing(mixtral: Checkpoint) -> None:
    layer = mixtral.read_layer(0)
    first = next(iter(layer.matrices()))
    first.weight_OC[:, ::2] = 0
    before = first.weight_OC.clone()
    found = zeros_of(layer)
    assert found[0] == MatrixZeros(first.weight_OC.numel(), first.weight_OC.numel() // 2, True)
    assert sum(matrix.zeros for matrix in found[1:]) == 0
    fill_zeros_(layer)
    assert all(matrix.zeros == 0 for matrix in zeros_of(layer))
    assert (first.weight_OC - before).abs().max() < 2e-6
    assert torch.equal(first.weight_OC[:, 1::2], before[:, 1::2])


def test_a_token_meets_all_but_the_experts_that_are_not_chosen(mixtral: Checkpoint) -> None:
    """3 layers of 6 experts, 2 a token: 4 idle experts of 3 matrices of 16 x 24; the router's rows are all met."""
    assert active_parameters(mixtral) == mixtral.num_parameters - 3 * 4 * 3 * 16 * 24


def test_bytes_on_disk_are_those_of_the_files_with_weights(
    mixtral: Checkpoint, tiny_model: Callable[[str], Path]
) -> None:
    """The toy is one file, of 4 bytes a parameter and a header."""
    (file,) = tiny_model("mixtral").glob("*.safetensors")
    assert disk_bytes(mixtral) == file.stat().st_size > 4 * mixtral.num_parameters


def test_weights_that_are_shared_are_held_once() -> None:
    one, other = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    assert weight_bytes(nn.ModuleList([one, other])) == 2 * 4 * 12
    other.weight = one.weight
    assert weight_bytes(nn.ModuleList([one, other])) == 4 * 12


def test_a_cache_is_as_large_as_its_keys_and_values() -> None:
    """2 layers, keys and values of 1 x 2 heads x 5 tokens x 3 numbers in 4 bytes."""
    cache = DynamicCache()
    for layer in range(2):
        cache.update(torch.zeros(1, 2, 5, 3), torch.zeros(1, 2, 5, 3), layer)
    assert cache_bytes(cache) == 2 * 2 * 2 * 5 * 3 * 4
