"""Masks of the lowest entries: exact counts, stated ties, nested."""

import pytest
import torch
from torch import Tensor

from stun_exp.unstructured_pruner.masks import SquaredNorm, lowest


def oracle(rows: list[list[float]], sparsity: float) -> list[list[bool]]:
    """Row by row with sorted(): floor(C s) each, then one more from the rows whose next entry is lowest."""
    num_rows, num_columns = len(rows), len(rows[0])
    each, rest = divmod(round(num_rows * num_columns * sparsity), num_rows)
    order = [sorted(range(num_columns), key=lambda c, row=row: (row[c], c)) for row in rows]
    gives_one_more: list[int] = []
    if rest:
        by_next = sorted(range(num_rows), key=lambda r: (rows[r][order[r][each]], r))
        gives_one_more = by_next[:rest]
    mask = [[False] * num_columns for _ in rows]
    for r in range(num_rows):
        for c in order[r][: each + (r in gives_one_more)]:
            mask[r][c] = True
    return mask


def saliency(rows: int, columns: int, *, ties: bool, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if ties:
        return torch.randint(0, 4, (rows, columns), generator=generator).float()
    return torch.rand(rows, columns, generator=generator)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", [(1, 40), (7, 11), (5, 8), (13, 1)])
def test_lowest_equals_the_oracle(shape: tuple[int, int], ties: bool) -> None:
    for seed in range(3):
        values = saliency(*shape, ties=ties, seed=seed)
        for sparsity in (0.0, 0.01, 0.1, 0.25, 1 / 3, 0.5, 0.617, 0.9, 0.99, 1.0):
            assert lowest(values, sparsity).tolist() == oracle(values.double().tolist(), sparsity)


def test_by_hand_with_a_rest_and_a_tie() -> None:
    """Half of 2 x 3 is 3: one each, and one more from the row whose second lowest is lower, 2 against 5.

    In row 1 both 5s are lowest: the left one goes.
    """
    values = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 6.0]])
    assert lowest(values, 0.5).tolist() == [[True, False, True], [True, False, False]]


@pytest.mark.parametrize("ties", [False, True])
def test_the_total_is_exact_and_rows_differ_by_at_most_one(ties: bool) -> None:
    """Published code floors each row's count: 49.3 % for 50 % on small widths."""
    values = saliency(31, 17, ties=ties)
    for percent in range(101):
        mask = lowest(values, percent / 100)
        per_row = mask.sum(1)
        assert int(mask.sum()) == round(31 * 17 * percent / 100)
        assert int(per_row.max() - per_row.min()) <= 1


@pytest.mark.parametrize("ties", [False, True])
def test_masks_are_nested_as_sparsity_rises(ties: bool) -> None:
    """Whatever goes at 40 % is gone at 65 % too; a rest given to other rows would break it."""
    values = saliency(9, 13, ties=ties)
    smaller = lowest(values, 0.0)
    for step in range(1, 9 * 13 + 1):
        larger = lowest(values, step / (9 * 13))
        assert int(larger.sum()) == step
        assert not bool((smaller & ~larger).any())
        smaller = larger


def test_nothing_and_everything() -> None:
    values = saliency(4, 6, ties=False)
    assert not bool(lowest(values, 0.0).any())
    assert bool(lowest(values, 1.0).all())
    assert int((~lowest(values, 0.999)).sum()) == 0  # 23.98 of 24
    assert int((~lowest(values, 0.97)).sum()) == 1  # 23.28 of 24


def test_squared_norm_by_hand() -> None:
    """Columns (3, 4) and (0, 2) over two tokens: norms 5 and 2."""
    norm = SquaredNorm(2)
    norm.update(torch.tensor([[3.0, 0.0]]))
    norm.update(torch.tensor([[4.0, 2.0]]))
    assert norm.norm_C().tolist() == [5.0, 2.0]
    assert norm.num_tokens == 2


def test_a_dead_input_weighs_next_to_nothing_but_something() -> None:
    """A zero would make the saliencies of its weights equal, and their place in the row would decide."""
    norm = SquaredNorm(2)
    norm.update(torch.empty(0, 2))
    assert norm.num_tokens == 0
    norm.update(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
    assert norm.num_tokens == 2
    live, dead = norm.norm_C().tolist()
    assert live == 5.0
    assert 0 < dead * 1e-6 < 1e-20


def test_bf16_inputs_are_squared_in_fp32() -> None:
    """257 tokens of 1: summed in bf16 the count would stick at 256."""
    norm = SquaredNorm(1)
    norm.update(torch.ones(257, 1, dtype=torch.bfloat16))
    assert float(norm.norm_C()) == pytest.approx(257**0.5)
