"""SparseGPT's maths: many matrices at once, as the published algorithm has it, but for dead inputs and counts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from stun_exp.unstructured_pruner.hessian import Hessian
from stun_exp.unstructured_pruner.masks import lowest
from stun_exp.unstructured_pruner.protocol import Task
from stun_exp.unstructured_pruner.sparsegpt import SparseGPT

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "conf/unstructured_pruner/sparsegpt.yaml").read_text())


def sparsegpt(**settings: Any) -> SparseGPT:
    """With the settings of conf/, but for those given."""
    return SparseGPT(**{key: value for key, value in CONFIG.items() if key != "_target_"} | settings)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(num_tokens: int, num_inputs: int, seed: int = 0) -> Tensor:
    """Inputs that share a few causes, as hidden states do: without correlation there is nothing to make up for."""
    causes = normal(num_tokens, num_inputs // 4, seed=seed) @ normal(num_inputs // 4, num_inputs, seed=seed + 1)
    return causes + 0.3 * normal(num_tokens, num_inputs, seed=seed + 2)


def hessian_of(x_NC: Tensor) -> Hessian:
    hessian = Hessian(x_NC.shape[1])
    hessian.update(x_NC)
    return hessian


def pruned(weight_OC: Tensor, statistic: Hessian, ratio: float, **settings: Any) -> Tensor:
    """One matrix by itself, without a warning."""
    result = weight_OC.clone()
    assert sparsegpt(**settings).prune_([Task("matrix", result, statistic, ratio)]) == []
    return result


def published(
    weight_OC: Tensor, x_NC: Tensor, ratio: float, block_size: int, n_of_m: tuple[int, int] | None = None
) -> np.ndarray:
    """The published algorithm in fp64, with its inverse and column by column, but with exact counts.

    Dead inputs, whose weights go first, keep what the count does not take.
    """
    w, x = weight_OC.double().numpy().copy(), x_NC.double().numpy()
    rows, columns = w.shape
    h = 2 / max(len(x), 1) * x.T @ x
    dead = np.diag(h) == 0
    damping = 0.01 * np.diag(h)[~dead].mean() if not dead.all() else 0.01
    h[dead, dead] = 1
    u = np.linalg.cholesky(np.linalg.inv(h + damping * np.eye(columns))).T
    mask = np.zeros_like(w, dtype=bool)

    def choose(start: int, stop: int, number: int, these_rows: list[int]) -> None:
        def saliency(place: tuple[int, int]) -> tuple[float, float, int, int]:
            row, column = place
            size = abs(w[place])
            return (0.0 if dead[column] else size / u[column, column], size, column, row)

        places = sorted(((r, c) for r in these_rows for c in range(start, stop)), key=saliency)
        for place in places[:number]:
            mask[place] = True

    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        if n_of_m is None:
            number = round(ratio * rows * stop) - round(ratio * rows * start)
            choose(start, stop, number, list(range(rows)))
        errors = np.zeros((rows, stop - start))
        for c in range(start, stop):
            if n_of_m and c % n_of_m[1] == 0:
                for row in range(rows):
                    choose(c, c + n_of_m[1], n_of_m[0], [row])
            q = np.where(mask[:, c], 0, w[:, c])
            errors[:, c - start] = (w[:, c] - q) / u[c, c]
            w[:, c:stop] -= np.outer(errors[:, c - start], u[c, c:stop])
            w[:, c] = q
        w[:, stop:] -= errors @ u[start:stop, stop:]
    return w


def assert_same(result: Tensor, expected: np.ndarray) -> None:
    assert np.array_equal(result.numpy() == 0, expected == 0)
    np.testing.assert_allclose(result.numpy(), expected, rtol=2e-3, atol=2e-4)


EXPERTS = [(normal(10, 52, seed=e), normal(10, 52, seed=50 + e), correlated(90, 52, seed=100 + e)) for e in range(3)]


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_all_experts_at_once_equal_the_published_algorithm_one_by_one(pattern: str) -> None:
    """Three experts whose gate and up share a Hessian, blocks of 24, 24 and 4 columns: longer than a run, and ragged.

    The trap: a block's threshold is taken after the blocks before it, but before its own columns, have moved it.
    """
    weights = [(gate.clone(), up.clone()) for gate, up, _ in EXPERTS]
    tasks = []
    for e, ((gate, up), (_, _, x)) in enumerate(zip(weights, EXPERTS, strict=True)):
        hessian = hessian_of(x)
        tasks += [Task(f"{e}.gate", gate, hessian, 0.5), Task(f"{e}.up", up, hessian, 0.5)]
    assert sparsegpt(pattern=pattern, block_size=24).prune_(tasks) == []
    n_of_m = None if pattern == "unstructured" else (2, 4)
    for (gate, up), (gate_before, up_before, x) in zip(weights, EXPERTS, strict=True):
        assert_same(gate, published(gate_before, x, 0.5, 24, n_of_m))
        assert_same(up, published(up_before, x, 0.5, 24, n_of_m))


def test_matrices_of_one_hessian_may_differ_in_rows_and_ratio() -> None:
    """A ratio for each expert, or starved experts that share a statistic, put unlike matrices side by side."""
    gate, up, x = EXPERTS[0]
    hessian, one, two = hessian_of(x), gate.clone(), up[:7].clone()
    sparsegpt(block_size=16).prune_([Task("one", one, hessian, 0.3), Task("two", two, hessian, 0.6)])
    assert_same(one, published(gate, x, 0.3, 16))
    assert_same(two, published(up[:7], x, 0.6, 16))


def test_experts_of_one_shape_may_differ_in_ratio() -> None:
    results = [gate.clone() for gate, _, _ in EXPERTS]
    ratios = [0.3, 0.5, 0.5]
    tasks = zip(results, EXPERTS, ratios, strict=True)
    sparsegpt(block_size=16).prune_([Task("gate", w, hessian_of(x), r) for w, (_, _, x), r in tasks])
    for result, (gate, _, x), ratio in zip(results, EXPERTS, ratios, strict=True):
        assert_same(result, published(gate, x, ratio, 16))


def test_fewer_tokens_than_inputs_are_enough() -> None:
    """The Hessian is singular, as that of most experts is on a little text; damping makes up for it."""
    weight, x = normal(12, 40), normal(7, 40, seed=1)
    result = pruned(weight, hessian_of(x), 0.5, block_size=16)
    assert_same(result, published(weight, x, 0.5, 16))
    assert float(((result - weight) @ x.T).norm()) < 0.2 * float((weight @ x.T).norm())


def test_a_hessian_that_is_not_positive_definite_is_damped_more_and_said_so() -> None:
    """Eigenvalues down to -0.05 after rounding, say: 0.01 is too little, 0.1 enough; the neighbor in the batch stays.

    The trap: a fallback to the identity would be magnitude pruning by another name.
    """
    bad, worse, good = Hessian(2), Hessian(2), hessian_of(normal(9, 2))
    bad.sum_CC = torch.tensor([[1.0, 1.05], [1.05, 1.0]])
    worse.sum_CC = torch.tensor([[1.0, 1.5], [1.5, 1.0]])
    weight = torch.tensor([[1.0, 3.0], [-2.0, 1.5]])
    results = {"a": weight.clone(), "b": weight.clone(), "c": weight.clone()}
    hessians = {"a": bad, "b": good, "c": worse}
    text = "the Hessian of the inputs is not positive definite with unstructured_pruner.damping=0.01"
    warnings = sparsegpt().prune_([Task(name, results[name], hessians[name], 0.5) for name in results])
    assert warnings == [f"a: {text}; 0.1 was used", f"c: {text}; 1 was used"]
    torch.testing.assert_close(results["a"], pruned(weight, bad, 0.5, damping=0.1))
    torch.testing.assert_close(results["b"], pruned(weight, good, 0.5))
    torch.testing.assert_close(results["c"], pruned(weight, worse, 0.5, damping=1.0))


def test_a_hessian_beyond_help_is_refused() -> None:
    bad = Hessian(2)
    bad.sum_CC = torch.tensor([[1.0, 50.0], [50.0, 1.0]])
    with pytest.raises(ValueError, match=r"matrix: the Hessian .*damping=0\.01, nor with .* up to 10;"):
        pruned(torch.ones(1, 2), bad, 0.5)


def test_without_a_token_magnitude_decides_in_each_block_and_nothing_moves() -> None:
    """Published, every input is dead then, and the whole expert is erased."""
    weight = normal(6, 20)
    result = pruned(weight, Hessian(20), 0.25, block_size=8)
    for start, number in [(0, 12), (8, 12), (16, 6)]:
        block = weight[:, start : start + 8]
        mask = lowest(block.abs().reshape(1, -1), number / block.numel()).view_as(block)
        assert torch.equal(result[:, start : start + 8], block.masked_fill(mask, 0))


def test_weights_of_dead_inputs_go_first_but_no_more_than_asked() -> None:
    """Inputs 1 and 5 are always zero: of their 12 weights the 10 smallest are the tenth of 6 x 16 (rounded) that goes.

    Published, all 12 go, on top of the tenth.
    """
    weight, x = normal(6, 16), normal(50, 16, seed=1)
    x[:, [1, 5]] = 0
    result = pruned(weight, hessian_of(x), 0.1)
    assert int((result == 0).sum()) == 10
    assert int((result[:, [1, 5]] == 0).sum()) == 10
    mask = lowest(weight[:, [1, 5]].abs().reshape(1, -1), 10 / 12).view(6, 2)
    assert torch.equal(result[:, [1, 5]] == 0, mask)
    live = [c for c in range(16) if c not in (1, 5)]
    assert torch.equal(result[:, live], weight[:, live])
    assert_same(pruned(weight, hessian_of(x), 0.5), published(weight, x, 0.5, 128))


def test_dead_inputs_change_nothing_for_the_others() -> None:
    """Eight inputs, and eight dead ones behind them: counted in the diagonal's mean, they would halve the damping."""
    weight, x = normal(6, 16), correlated(50, 16)
    x[:, 8:] = 0
    alone = pruned(weight[:, :8], hessian_of(x[:, :8]), 0.5, block_size=8, damping=0.5)
    beside = pruned(weight, hessian_of(x), 0.5, block_size=8, damping=0.5)
    torch.testing.assert_close(beside[:, :8], alone)


def test_over_all_inputs_half_of_them_dead_halve_the_damping() -> None:
    """As published, but for the 1 that a dead input has on the diagonal there."""
    weight, x = normal(6, 16), correlated(50, 16)
    x[:, 8:] = 0
    halved = pruned(weight, hessian_of(x), 0.5, block_size=8, damping=0.25)
    over_all = pruned(weight, hessian_of(x), 0.5, block_size=8, damping=0.5, damping_over="all")
    torch.testing.assert_close(over_all, halved)
    assert not torch.allclose(over_all, pruned(weight, hessian_of(x), 0.5, block_size=8, damping=0.5), rtol=1e-2)


def test_over_all_inputs_an_expert_without_a_token_is_pruned_by_magnitude_too() -> None:
    weight = normal(6, 20)
    assert torch.equal(pruned(weight, Hessian(20), 0.25, damping_over="all"), pruned(weight, Hessian(20), 0.25))


def test_the_scale_of_the_inputs_does_not_matter() -> None:
    """Not even beside a dead input, for which the published code puts a 1 in units of the others."""
    weight, x = normal(6, 16), normal(50, 16, seed=1)
    x[:, 3] = 0
    torch.testing.assert_close(pruned(weight, hessian_of(x * 1024), 0.5), pruned(weight, hessian_of(x), 0.5))


def test_the_statistic_sums_batches_and_leaves_the_gate_out() -> None:
    """257 tokens of 1 in bf16, where a count would stick at 256; the router's weight is no part of the inputs."""
    hessian = Hessian(2)
    for x in torch.ones(257, 2, dtype=torch.bfloat16).split(100):
        hessian.update(x, torch.full((len(x),), 0.25))
    hessian.update(torch.empty(0, 2))
    assert hessian.total_CC().tolist() == [[257.0, 257.0], [257.0, 257.0]]
    assert hessian.num_tokens == 257


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_inputs_that_are_not_finite_show(value: float) -> None:
    x = normal(4, 3)
    assert hessian_of(x).is_finite()
    assert Hessian(3).is_finite()
    x[2, 1] = value
    assert not hessian_of(x).is_finite()
