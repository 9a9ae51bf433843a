"""SparseGPT: errors are made up for by the weights to the right; counts are exact."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from stun_exp.allocation.owl import OWL
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.pipeline.allocate import layer_ratios
from stun_exp.pipeline.budget import budget_of
from stun_exp.pipeline.prune import Pruning, prune_layers
from stun_exp.pipeline.verify import count_written
from stun_exp.pipeline.weight_stage import WeightStage
from stun_exp.streaming.walk import Walk
from stun_exp.unstructured_pruner.hessian import Hessian
from stun_exp.unstructured_pruner.masks import lowest
from stun_exp.unstructured_pruner.pattern import fixed_ratio
from stun_exp.unstructured_pruner.protocol import Task
from stun_exp.unstructured_pruner.sparsegpt import SparseGPT
from stun_exp.unstructured_pruner.wanda import Wanda

CONF = Path(__file__).parents[2] / "conf"
CPU = torch.device("cpu")


def settings_of(choice: str) -> dict[str, Any]:
    config = yaml.safe_load((CONF / f"{choice}.yaml").read_text())
    return {key: value for key, value in config.items() if key != "_target_"}


def sparsegpt(**settings: Any) -> SparseGPT:
    """With the settings of conf/, but for those given."""
    return SparseGPT(**settings_of("unstructured_pruner/sparsegpt") | settings)


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


EXPERTS = [(normal(10, 52, seed=e), normal(10, 52, seed=50 + e), correlated(90, 52, seed=100 + e)) for e in range(3)]


def test_one_factorisation_serves_all_experts_and_one_hessian_gate_and_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of the method: a Hessian for each matrix would be twice as many, one call for each expert slow."""
    factor, shapes = torch.linalg.cholesky_ex, []

    def counted(matrices: Tensor) -> Any:
        shapes.append(tuple(matrices.shape))
        return factor(matrices)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", counted)
    tasks = []
    for gate, up, x in EXPERTS:
        hessian = hessian_of(x)
        tasks += [Task("gate", gate.clone(), hessian, 0.5), Task("up", up.clone(), hessian, 0.5)]
    sparsegpt().prune_(tasks)
    assert shapes == [(3, 52, 52)]


def test_by_hand() -> None:
    """Two inputs, H = ((1, 1/2), (1/2, 1)), hardly damped: the first weight goes, the second takes over half of it.

    The least-squares answer for w_2 alone is w_2 + H_12 / H_22 w_1 = 3 + 1/2.
    """
    x = torch.tensor([[1.0, 0.5], [0.0, 0.75**0.5]])
    weight = torch.tensor([[1.0, 3.0]])
    result = pruned(weight, hessian_of(x), 0.5, damping=1e-6)
    assert result.tolist() == [[0.0, pytest.approx(3.5, abs=1e-4)]]


def test_what_can_be_made_up_for_goes_first() -> None:
    """The left weight, which the right one can replace in part; by magnitude and by Wanda the right is smaller."""
    x = torch.tensor([[1.0, 0.5], [0.0, 0.75**0.5]])
    result = pruned(torch.tensor([[1.001, 1.0]]), hessian_of(x), 0.5)
    assert result[0, 0] == 0
    assert result[0, 1] > 1.4


@pytest.mark.parametrize("ratio", [0.01, 0.1, 1 / 3, 0.5, 0.617, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(7, 21), (1, 40), (13, 1)])
def test_the_count_is_exact_for_any_ratio(shape: tuple[int, int], ratio: float) -> None:
    """Published: `<=` at each block's threshold, so one too many in every block."""
    x = normal(60, shape[1], seed=1)
    result = pruned(normal(*shape), hessian_of(x), ratio, block_size=8)
    assert int((result == 0).sum()) == round(shape[0] * shape[1] * ratio)


def test_zero_percent_is_the_identity() -> None:
    weight = normal(6, 20)
    assert torch.equal(pruned(weight, hessian_of(normal(30, 20, seed=1)), 0.0), weight)


def test_zero_percent_beside_others_is_the_identity_too() -> None:
    gate, up, x = EXPERTS[0]
    hessian, one, two = hessian_of(x), gate.clone(), up.clone()
    sparsegpt().prune_([Task("one", one, hessian, 0.0), Task("two", two, hessian, 0.5)])
    assert torch.equal(one, gate)
    assert int((two == 0).sum()) == 260


@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4)])
def test_n_of_m_is_exact_in_every_group(pattern: str, n: int, m: int) -> None:
    pruner = sparsegpt(pattern=pattern, block_size=16)
    assert fixed_ratio(pruner.pattern) == n / m
    result = normal(9, 40)
    pruner.prune_([Task("matrix", result, hessian_of(correlated(80, 40)), n / m)])
    assert bool(((result == 0).view(9, -1, m).sum(2) == n).all())


def test_a_width_that_m_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pattern=2:4: 4 neighbours do not divide the 10 inputs of matrix"):
        pruned(normal(3, 10), hessian_of(normal(20, 10)), 0.5, pattern="2:4")


def test_a_block_that_would_cut_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="block_size=10 would cut the 4 neighbours"):
        sparsegpt(pattern="2:4", block_size=10)


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="must be unstructured"):
        sparsegpt(pattern="4:2")


def test_permuting_experts_commutes() -> None:
    """A weight is no other for the place of its matrix in the batch."""

    def run(order: list[int]) -> dict[int, Tensor]:
        results = {e: EXPERTS[e][0].clone() for e in order}
        sparsegpt(block_size=16).prune_([Task(str(e), results[e], hessian_of(EXPERTS[e][2]), 0.5) for e in order])
        return results

    plain, permuted = run([0, 1, 2]), run([2, 0, 1])
    for expert in range(3):
        assert torch.equal(plain[expert] == 0, permuted[expert] == 0)
        torch.testing.assert_close(plain[expert], permuted[expert])


def test_two_runs_are_bit_equal() -> None:
    gate, _, x = EXPERTS[0]
    assert torch.equal(pruned(gate, hessian_of(x), 0.5), pruned(gate, hessian_of(x), 0.5))


def test_it_reconstructs_better_than_wanda_and_magnitude_on_correlated_inputs() -> None:
    """What it is for. On text it has not seen, so that it is not for fitting the calibration text."""
    weight, x = normal(32, 64), correlated(600, 64)
    seen, unseen = x[:400], x[400:]
    wanda = Wanda(attention=True, group="row", pattern="unstructured", inputs="pruned", min_tokens=1, starved="dense")
    norm, by_wanda = wanda.statistic(64), weight.clone()
    norm.update(seen)
    wanda.prune_([Task("matrix", by_wanda, norm, 0.5)])
    by_magnitude = weight.masked_fill(lowest(weight.abs().reshape(1, -1), 0.5).view_as(weight), 0)
    by_hessian = pruned(weight, hessian_of(seen), 0.5, block_size=16)

    def error(result: Tensor) -> float:
        return float(((result - weight) @ unseen.T).norm())

    assert error(by_hessian) < 0.6 * min(error(by_wanda), error(by_magnitude))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_view_of_a_fused_tensor_is_pruned_in_place(dtype: torch.dtype) -> None:
    """Transposed experts, and the interleaved halves of a projection, are views that are not contiguous."""
    fused = normal(2, 12, 10).to(dtype)
    before = fused.clone()
    hessian = hessian_of(normal(50, 12, seed=1))
    sparsegpt().prune_([Task(h, fused[1].mT[i::2], hessian, 0.5) for i, h in enumerate(["gate", "up"])])
    assert torch.equal(fused[0], before[0])
    for half in range(2):
        alone = pruned(before[1].mT[half::2].float(), hessian, 0.5)
        # Two matrices at once, of other strides, take other kernels than one, and may round another way.
        assert torch.equal(fused[1].mT[half::2] == 0, alone == 0)
        torch.testing.assert_close(fused[1].mT[half::2], alone.to(dtype))
        assert int((fused[1].mT[half::2] == 0).sum()) == 30


def test_owl_sees_wandas_saliency() -> None:
    """By sums of squares alone: an allocation looks at all experts at once, whose Hessians may not fit together."""
    statistic = sparsegpt().saliency_statistic(2)
    statistic.update(torch.tensor([[3.0, 0.5], [4.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    weight = torch.tensor([[-1.0, 4.0]])
    assert sparsegpt().saliency(weight, statistic).tolist() == [[5.0, 2.0]]
    assert sparsegpt().saliency(weight, statistic, per_token=True).tolist() == [[2.5, 1.0]]


class Run:
    """The weight stage, walked over a checkpoint and written."""

    def __init__(self, source: Checkpoint, tokens_BT: Tensor, out: Path, experts_at_once: int | None):
        self.stage = stage = WeightStage(sparsegpt(experts_at_once=experts_at_once, block_size=8), "decoder")
        counts = {i: 6 for i in range(source.num_layers) if source.outline(i).is_moe}
        budget = budget_of(source, counts, 0.5, "decoder", True)
        owl = OWL(**settings_of("allocation/owl") | {"outlier_multiple": 3.0})
        walks = [Walk(source, list(tokens_BT.split(2)), CPU, what) for what in ("allocating", "pruning")]
        self.ratios = layer_ratios(stage, owl, budget, budget.weights_ratio(), walks[0])
        self.layers = prune_layers([Pruning(stage, self.ratios, walks[1], CheckpointWriter(source, out))])[0].layers
        self.written = Checkpoint(out, None)

    def weights(self) -> dict[str, Tensor]:
        layers = [self.written.read_layer(index) for index in range(self.written.num_layers)]
        return {f"{layer.index}.{m.name}": m.weight_OC for layer in layers for m in layer.matrices()}


def test_asked_sparsity_is_counted_on_disk(checkpoint: Checkpoint, tokens_BT: Tensor, tmp_path: Path) -> None:
    """Every family, with a ratio for each layer; 16 inputs and more, so every matrix has several blocks."""
    run = Run(checkpoint, tokens_BT, tmp_path / "out", 8)
    assert len({ratio.rest for ratio in run.ratios}) > 1
    layers = count_written(run.written, run.stage, range(run.written.num_layers))
    gone = sum(layer.zeros for layer in layers) / sum(layer.weights for layer in layers)
    assert gone == pytest.approx(0.5, abs=0.001)
    for name, weight_OC in run.weights().items():
        ratio = run.ratios[int(name.partition(".")[0])].rest
        assert int((weight_OC == 0).sum()) == round(weight_OC.numel() * ratio), name
    assert not any(layer.warnings for layer in run.layers)


def test_experts_in_portions_are_pruned_as_all_at_once(mixtral: Checkpoint, tokens_BT: Tensor, tmp_path: Path) -> None:
    """Four, then two, then attention. The trap: attention pruned before the second portion is observed."""
    whole = Run(mixtral, tokens_BT, tmp_path / "whole", None).weights()
    for name, weight_OC in Run(mixtral, tokens_BT, tmp_path / "portions", 4).weights().items():
        assert torch.equal(weight_OC == 0, whole[name] == 0), name
        torch.testing.assert_close(weight_OC, whole[name])
