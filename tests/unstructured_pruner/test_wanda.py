"""Wanda: weights times input norms, lowest of each output row."""

import pytest
import torch
from torch import Tensor

from stun_exp.cli.check import check
from stun_exp.cli.main import CONF
from stun_exp.config.build import ConfigError
from stun_exp.unstructured_pruner.magnitude import Magnitude
from stun_exp.unstructured_pruner.masks import SquaredNorm
from stun_exp.unstructured_pruner.protocol import Task
from stun_exp.unstructured_pruner.wanda import Wanda

WANDA = Wanda(attention=True, group="row", pattern="unstructured", inputs="pruned", min_tokens=1, starved="every_token")


def prune(weight_OC: Tensor, statistic: SquaredNorm, ratio: float) -> None:
    assert WANDA.prune_([Task("matrix", weight_OC, statistic, ratio)]) == []


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int, seed: int = 0) -> Tensor:
    """Inputs whose squares add up exactly in any order."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


def pruned(weight_OC: Tensor, x_NC: Tensor, sparsity: float) -> Tensor:
    statistic = WANDA.statistic(weight_OC.shape[1])
    statistic.update(x_NC)
    result = weight_OC.clone()
    prune(result, statistic, sparsity)
    return result


def test_by_hand() -> None:
    """Input norms 5, 1, 2 make the saliencies 5, 4, 4 and 5, 3, 4; a third of 2 x 3 is one a row.

    In row 0 the tie of 4 goes to the left; magnitude would have taken the 1 of either row.
    """
    weight = torch.tensor([[1.0, -4.0, 2.0], [-1.0, 3.0, 2.0]])
    x = torch.tensor([[3.0, 1.0, 0.0], [4.0, 0.0, 2.0]])
    assert pruned(weight, x, 1 / 3).tolist() == [[1.0, 0.0, 2.0], [-1.0, 0.0, 2.0]]


def test_equals_the_published_mask_where_the_count_divides_evenly() -> None:
    """The classic code: a stable sort of each row, and the first int(C s) go."""
    weight, x = normal(20, 32), normal(50, 32, seed=1)
    saliency = weight.abs() * x.square().sum(0).sqrt()
    index = saliency.sort(dim=1, stable=True).indices[:, : int(32 * 0.25)]
    expected = weight.scatter(1, index, 0.0)
    assert torch.equal(pruned(weight, x, 0.25), expected)


def test_the_count_is_of_the_matrix_where_it_does_not() -> None:
    """Half of 5 x 7 is 17.5, rounded to 18; the published code takes 3 a row, 15."""
    assert int((pruned(normal(5, 7), normal(9, 7, seed=1), 0.5) == 0).sum()) == 18


def test_the_order_of_tokens_and_their_batches_do_not_matter() -> None:
    weight, x = normal(6, 10), integers(30, 10)
    shuffled = WANDA.statistic(10)
    for batch in x.flip(0).split(7):
        shuffled.update(batch)
    result = weight.clone()
    prune(result, shuffled, 0.4)
    assert torch.equal(result, pruned(weight, x, 0.4))


def test_the_amount_of_text_does_not_matter() -> None:
    """All tokens twice scale every norm alike; rarely used experts are ranked no worse for it."""
    weight, x = normal(6, 10), integers(30, 10)
    assert torch.equal(pruned(weight, torch.cat([x, x, x, x]), 0.4), pruned(weight, x, 0.4))


@pytest.mark.parametrize(
    "settings",
    [{"group": "row"}, {"group": "cumulative"}, {"group": "matrix"}, {"group": "layer"}, {"pattern": "2:4"}],
    ids=str,
)
def test_a_starved_matrix_is_pruned_by_magnitude_not_from_the_left(settings: dict[str, str]) -> None:
    """No token, no norm: the published code would see zeros, and a stable sort would erase the left half."""
    weight = normal(8, 16)
    ours, magnitude = weight.clone(), weight.clone()
    with_settings = Wanda(**WANDA.model_dump() | settings)
    with_settings.prune_([Task("matrix", ours, with_settings.statistic(16), 0.5)])
    Magnitude(**{"attention": True, "group": "row", "pattern": "unstructured"} | settings).prune_(
        [Task("matrix", magnitude, None, 0.5)]
    )
    assert torch.equal(ours, magnitude)
    assert int((ours == 0).sum()) == 64
    assert bool(ours[:, :8].any(dim=1).all())


def test_a_row_is_compared_within_itself_whatever_its_size_a_matrix_is_not() -> None:
    """A row a hundred times larger loses its share per row and by cumulative shares, and nothing in the matrix."""
    weight, x = normal(2, 40), normal(9, 40, seed=1)
    weight[1] *= 100
    zeros = {}
    for group in ("row", "cumulative", "matrix"):
        result = weight.clone()
        statistic = WANDA.statistic(40)
        statistic.update(x)
        Wanda(**WANDA.model_dump() | {"group": group}).prune_([Task("matrix", result, statistic, 0.25)])
        zeros[group] = (result == 0).sum(1).tolist()
    assert zeros["row"] == [10, 10]
    assert sum(zeros["cumulative"]) == 20
    assert min(zeros["cumulative"]) > 5
    assert zeros["matrix"] == [20, 0]


def test_the_same_tokens_more_often_do_not_change_a_saliency_per_token() -> None:
    """What OWL compares between a rare and a frequent expert; the sum would favour the frequent one."""
    weight, x = normal(3, 5), integers(8, 5)
    rare, frequent = WANDA.statistic(5), WANDA.statistic(5)
    rare.update(x)
    for _ in range(16):
        frequent.update(x)
    torch.testing.assert_close(WANDA.saliency(weight, rare, True), WANDA.saliency(weight, frequent, True))
    torch.testing.assert_close(4 * WANDA.saliency(weight, rare), WANDA.saliency(weight, frequent))


def test_an_expert_without_tokens_is_always_starved() -> None:
    """min_tokens=0 would prune it by magnitude without a word."""
    with pytest.raises(ConfigError, match=r"^unstructured_pruner.min_tokens=0: must be at least 1$"):
        check(["unstructured_pruner.min_tokens=0"], CONF)


def test_zero_percent_is_the_identity() -> None:
    weight = normal(6, 10)
    assert torch.equal(pruned(weight, normal(9, 10, seed=1), 0.0), weight)


def test_weights_that_are_zero_already_count() -> None:
    """Pruning 50 % of a matrix with 20 % zeros leaves 50 %, not 70 %."""
    weight = normal(6, 10)
    weight[:, 3:5] = 0
    result = pruned(weight, normal(9, 10, seed=1), 0.5)
    assert int((result == 0).sum()) == 30


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_pruned_in_their_own_storage(dtype: torch.dtype) -> None:
    weight = normal(6, 10).to(dtype)
    view = weight[:, :]
    prune(view, SquaredNorm(10), 0.5)
    assert weight.dtype == dtype
    assert int((weight == 0).sum()) == 30


def test_kept_weights_are_bit_equal() -> None:
    weight = normal(6, 10)
    result = pruned(weight, normal(9, 10, seed=1), 0.5)
    assert torch.equal(result[result != 0], weight[result != 0])


def test_zeros_count_as_pruned_beside_dead_inputs() -> None:
    """Two dead inputs and two zeros in rows of 8, at 25 %: the zeros are the quarter, nothing more may go.

    The trap: weights of dead inputs and zeros alike have no saliency, the tie went to the left, and half was gone.
    """
    weight = torch.ones(2, 8)
    weight[:, 6:] = 0
    statistic = WANDA.statistic(8)
    statistic.update(torch.tensor([[0.0, 0.0, 1, 1, 1, 1, 1, 1]]))
    prune(weight, statistic, 0.25)
    assert int((weight == 0).sum()) == 4
