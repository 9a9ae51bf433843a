"""Masks of the lowest entries: exact counts, stated ties, nested."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from stun_exp.unstructured_pruner.masks import (
    SquaredNorm,
    lowest,
    lowest_in_group,
    lowest_of_neighbors,
    lowest_together,
)


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


def published_cumulative(rows: list[list[float]], sparsity: float) -> list[list[bool]]:
    """Wanda's variant as published: bisect the share alpha of each row's sum that goes, until the count is right."""
    low, high, alpha = 0.0, 0.8, 0.4
    while True:
        mask = []
        for row in rows:
            order, total, gone = sorted(range(len(row)), key=lambda c, row=row: (row[c], c)), 0.0, [False] * len(row)
            for c in order:
                total += row[c]
                gone[c] = total <= alpha * sum(row)
            mask.append(gone)
        count = sum(map(sum, mask)) / (len(rows) * len(rows[0]))
        if abs(count - sparsity) <= 0.001 or high - low < 0.001:
            return mask
        low, high = (low, alpha) if count > sparsity else (alpha, high)
        alpha = (low + high) / 2


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.65])
def test_cumulative_shares_equal_the_published_search_for_alpha(sparsity: float) -> None:
    """The search stops at about the asked count; at its count the masks are the same, and ours can be had exactly.

    Rows of very different sizes: compared by value over the matrix, the small rows alone would go.
    """
    values = saliency(40, 50, ties=False) * torch.logspace(-2, 2, 40)[:, None]
    searched = torch.tensor(published_cumulative(values.double().tolist(), sparsity))
    found = float(searched.double().mean())
    assert found == pytest.approx(sparsity, abs=0.002)
    assert torch.equal(lowest_in_group(values, found, "cumulative"), searched)
    assert int(lowest_in_group(values, sparsity, "cumulative").sum()) == round(2000 * sparsity)
    assert int(searched.sum(1).max() - searched.sum(1).min()) > 1  # unlike per row


def test_cumulative_by_hand() -> None:
    """Shares 0.1, 0.3, 0.6, 1 of a sum of 1, and 1/13, 2/13, 3/13, 1 of one of 13: the four lowest shares go.

    Per row it would be two each. Of the whole matrix it would be by value, and the small row would go.
    """
    values = torch.tensor([[0.1, 0.2, 0.3, 0.4], [10.0, 1.0, 1.0, 1.0]])
    assert lowest_in_group(values, 0.5, "cumulative").int().tolist() == [[1, 0, 0, 0], [0, 1, 1, 1]]
    assert lowest_in_group(values, 0.5, "row").int().tolist() == [[1, 1, 0, 0], [0, 1, 1, 0]]
    assert lowest_in_group(values, 0.5, "matrix").int().tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]


def test_a_row_of_zeros_has_no_share_to_lose_and_goes_first() -> None:
    """0 / 0 must be no NaN, which sorts behind everything."""
    values = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 5.0]])
    assert lowest_in_group(values, 1 / 3, "cumulative").int().tolist() == [[0, 0], [1, 1], [0, 0]]


@pytest.mark.parametrize("group", ["row", "cumulative", "matrix"])
@pytest.mark.parametrize("ties", [False, True])
def test_every_group_is_exact_and_nested(group: str, ties: bool) -> None:
    values = saliency(9, 13, ties=ties)
    smaller = torch.zeros(9, 13, dtype=torch.bool)
    for count in range(9 * 13 + 1):
        mask = lowest_in_group(values, count / (9 * 13), group)
        assert int(mask.sum()) == count
        assert not bool((smaller & ~mask).any())
        smaller = mask


def test_together_the_lowest_of_all_matrices_go() -> None:
    """Five of ten over two shapes: 0.5 to 3 lie in the first and 1.5 in the second; of the 3s the first goes."""
    first, second = torch.tensor([[3.0, 9.0, 1.0], [2.0, 0.5, 8.0]]), torch.tensor([[3.0, 7.0], [1.5, 6.0]])
    masks = lowest_together([first, second], 4.6)
    assert masks[0].int().tolist() == [[1, 0, 1], [1, 1, 0]]
    assert masks[1].int().tolist() == [[0, 0], [1, 0]]


def test_together_any_count_is_met() -> None:
    """The count passes through a ratio, which must not lose one on the way back."""
    matrices = [saliency(7, 11, ties=True), saliency(5, 3, ties=True, seed=1), saliency(1, 1, ties=True)]
    flat = [value for matrix in matrices for value in matrix.flatten().tolist()]
    for count in range(94):
        gone = [entry for mask in lowest_together(matrices, count) for entry in mask.flatten().tolist()]
        lowest_first = sorted(range(93), key=lambda i: (flat[i], i))[:count]
        assert [i for i, is_gone in enumerate(gone) if is_gone] == sorted(lowest_first)


PATTERNS = [(1, 4), (2, 4), (3, 8), (4, 8), (1, 2), (7, 8)]


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("ties", [False, True])
def test_n_of_every_m_neighbors_go_and_ties_go_to_the_left(n: int, m: int, ties: bool) -> None:
    values = saliency(5, 24, ties=ties)
    mask = lowest_of_neighbors(values, n / m, m)
    for row, gone in zip(values.tolist(), mask.tolist(), strict=True):
        for start in range(0, 24, m):
            order = sorted(range(start, start + m), key=lambda c, row=row: (row[c], c))
            assert [c for c in range(start, start + m) if gone[c]] == sorted(order[:n])


def test_patterns_of_one_m_are_nested() -> None:
    values = saliency(5, 24, ties=True)
    masks = [lowest_of_neighbors(values, n / 8, 8) for n in range(9)]
    assert [int(mask.sum()) for mask in masks] == [15 * n for n in range(9)]
    assert not any(bool((smaller & ~larger).any()) for smaller, larger in pairwise(masks))


def test_neighbors_are_inputs_and_not_outputs_of_a_transposed_view() -> None:
    """The saliency of transposed experts is no contiguous tensor: neighbors in storage are another row's."""
    values = saliency(8, 6, ties=False)
    transposed = lowest_of_neighbors(values.T, 0.5, 4)
    assert torch.equal(transposed, lowest_of_neighbors(values.T.contiguous(), 0.5, 4))
    assert transposed.view(6, 2, 4).sum(2).unique().tolist() == [2]


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


def test_gates_scale_tokens_and_only_where_asked() -> None:
    """Inputs 5 and 5 with gates 0.6 and 0.8 are 3 and 4: norm 5. A linear's tokens come without gates."""
    x, gates = torch.tensor([[5.0], [5.0]]), torch.tensor([0.6, 0.8])
    gated, plain, linear = SquaredNorm(1, gated=True), SquaredNorm(1), SquaredNorm(1, gated=True)
    gated.update(x, gates)
    plain.update(x, gates)
    linear.update(x)
    assert float(gated.norm_C()) == pytest.approx(5)
    assert float(plain.norm_C()) == float(linear.norm_C()) == pytest.approx(50**0.5)
    assert x.tolist() == [[5.0], [5.0]]  # squared in a copy: the layer goes on with them


def test_per_token_is_the_root_of_the_mean_square() -> None:
    """Tokens seen ten times as often weigh the same; without a token it is next to nothing, not NaN."""
    once, often = SquaredNorm(2), SquaredNorm(2)
    once.update(torch.tensor([[3.0, 1.0], [4.0, 7.0]]))
    for _ in range(10):
        often.update(torch.tensor([[3.0, 1.0], [4.0, 7.0]]))
    assert once.norm_C(per_token=True).tolist() == pytest.approx([12.5**0.5, 5.0])
    assert often.norm_C(per_token=True).tolist() == pytest.approx([12.5**0.5, 5.0])
    assert often.norm_C().tolist() == pytest.approx([250**0.5, 500**0.5])
    assert 0 < float(SquaredNorm(1).norm_C(per_token=True)) < 1e-19


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_inputs_that_are_not_finite_or_whose_squares_are_not_are_noticed(value: float) -> None:
    norm = SquaredNorm(2)
    assert norm.is_finite()
    norm.update(torch.tensor([[1.0, 2.0]]))
    assert norm.is_finite()
    norm.update(torch.tensor([[1.0, value]]))
    assert not norm.is_finite()
