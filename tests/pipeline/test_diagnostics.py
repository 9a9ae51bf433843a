"""What a report says of weights and outputs, against numpy and against layers run by hand."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from stun_exp.allocation.ratios import LayerRatios
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.moe.layers import Matrix, MoELayer
from stun_exp.moe.plan import LayerPlan, Plan
from stun_exp.pipeline import diagnostics
from stun_exp.pipeline.diagnostics import Diagnostics, Moments, Weights, outlier_percent, weights_of
from stun_exp.pipeline.prune import Pruning, prune_layers
from stun_exp.pipeline.prune_layer import PrunedLayer
from stun_exp.pipeline.weight_stage import WeightStage
from stun_exp.streaming.walk import Walk
from stun_exp.unstructured_pruner.magnitude import Magnitude
from stun_exp.unstructured_pruner.wanda import Wanda

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")


def kurtosis(values: np.ndarray) -> float:
    """The definition, in numpy's longest floats."""
    deviation = values.astype(np.longdouble) - values.astype(np.longdouble).mean()
    return float((deviation**4).mean() / (deviation**2).mean() ** 2)


def moments(values: np.ndarray) -> Moments:
    return weights_of(torch.from_numpy(values)[None]).nonzero


def test_moments_by_hand() -> None:
    """1, 2, 3, 4: deviations -1.5, -0.5, 0.5, 1.5; squares sum to 5, fourth powers to 10.25; 4 x 10.25 / 25 = 1.64."""
    found = moments(np.array([1.0, 2.0, 3.0, 4.0]))
    assert found == Moments(4, 2.5, 5.0, 0.0, 10.25)
    assert found.kurtosis() == pytest.approx(1.64)


def test_zeros_raise_the_kurtosis_of_all_and_not_of_the_rest() -> None:
    """Half zeros, half -1 and 1: of all, 0.5 / 0.5^2 = 2; of those left, two peaks and no tail, 1, the least there is.

    STUN's claim that unstructured pruning lowers kurtosis holds for the weights that are left alone.
    """
    found = weights_of(torch.tensor([[0.0, 1.0, 0.0, -1.0], [1.0, 0.0, -1.0, 0.0]]))
    assert found.zeros == 4
    assert found.sparsity() == 0.5
    assert found.kurtosis() == {"all": pytest.approx(2.0), "nonzero": pytest.approx(1.0)}


def test_merged_moments_are_those_of_the_numbers_together() -> None:
    """Skewed pieces of unequal size, spread and mean, and an empty one, so that every term of the formulas counts."""
    rng = np.random.default_rng(0)
    pieces = [rng.exponential(spread, n) + mean for spread, n, mean in ((1, 7, 0), (3, 500, 5), (0.1, 1, -9))]
    merged = sum((moments(piece) for piece in pieces), Moments()) + Moments()
    deviation = np.concatenate(pieces).astype(np.longdouble)
    mean = deviation.mean()
    deviation -= mean
    assert merged.count == 508
    assert merged.mean == pytest.approx(float(mean), rel=1e-12)
    for power, value in ((2, merged.m2), (3, merged.m3), (4, merged.m4)):
        assert value == pytest.approx(float((deviation**power).sum()), rel=1e-12)


def test_a_large_mean_costs_no_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of plain powers, the obvious way to gather moments piece by piece, have no digit left at this offset."""
    monkeypatch.setattr(diagnostics, "CPU_CHUNK", 100)
    values = np.random.default_rng(0).normal(size=1000) + 1e6
    found = weights_of(torch.from_numpy(values).view(20, 50)).nonzero.kurtosis()
    assert found == pytest.approx(kurtosis(values), rel=1e-8)
    s1, s2, s3, s4 = (float((values**power).mean()) for power in (1, 2, 3, 4))
    assert (s4 - 4 * s1 * s3 + 6 * s1**2 * s2 - 3 * s1**4) / (s2 - s1**2) ** 2 != pytest.approx(found, rel=0.5)


@pytest.mark.parametrize("chunk", [1, 7, 40, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_do_not_matter(chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transposed view, as some families keep their experts, with whole rows of zeros in it."""
    monkeypatch.setattr(diagnostics, "CPU_CHUNK", chunk)
    weight_OC = torch.randn(7, 30, generator=torch.Generator().manual_seed(0)).to(dtype).T
    weight_OC[torch.rand(30, 7, generator=torch.Generator().manual_seed(1)) < 0.4] = 0
    weight_OC[3] = 0
    found = weights_of(weight_OC)
    values = weight_OC.double().numpy().ravel()
    assert found.zeros == np.count_nonzero(values == 0)
    assert found.kurtosis()["all"] == pytest.approx(kurtosis(values))
    assert found.kurtosis()["nonzero"] == pytest.approx(kurtosis(values[values != 0]))


def test_without_a_spread_there_is_no_kurtosis() -> None:
    """NaN is no JSON; a damaged expert that is removed must not stop a run either."""
    for values in ([[0.0, 0.0]], [[2.0, 2.0]], [[1.0, float("nan")]], [[1.0, float("inf")]]):
        assert weights_of(torch.tensor(values)).kurtosis()["nonzero"] is None
    assert Weights().kurtosis() == {"all": None, "nonzero": None}
    assert Weights().sparsity() == 0


def test_outliers_of_a_layer_by_hand() -> None:
    """Nine weights of size 1 and an 11, of either sign: their mean is 2, and only the 11 exceeds 10.

    Within its own matrix, where the mean is 6, it would be none.
    """
    weights = [torch.tensor([[1.0, -1, 1, -1], [1, -1, 1, -1]]), torch.tensor([[-11.0, 1.0]])]
    matrices = [Matrix(str(i), weight_OC, "", "mlp") for i, weight_OC in enumerate(weights)]
    assert outlier_percent(matrices) == pytest.approx(10)
    assert outlier_percent(matrices[1:]) == 0
    assert outlier_percent([]) is None


def wanda(**settings: Any) -> Wanda:
    config = yaml.safe_load((ROOT / "conf/unstructured_pruner/wanda.yaml").read_text())
    return Wanda(**{key: value for key, value in config.items() if key != "_target_"} | settings)


class PortionedWanda(Wanda):
    """Holds the statistics of two experts at a time, so a layer runs several times while it is pruned."""

    experts_at_once: ClassVar[int | None] = 2


def portioned() -> Wanda:
    return PortionedWanda(**wanda().model_dump())


MAGNITUDE = Magnitude(attention=True, group="matrix", pattern="unstructured")
REGROUP = [[0, 3], [1], [4], [5]]


PLAN = Plan([LayerPlan(2, 6, REGROUP, [group[0] for group in REGROUP])])
"""An expert stage that removes one expert of the six and merges two, in the last layer alone."""


def edit(layer: MoELayer) -> None:
    """What the plan does to a layer."""
    if layer.index == 2:
        layer.regroup(REGROUP)


class Pruned:
    """The second stage over a small model whose last layer lost experts, with diagnostics or without."""

    def __init__(
        self, source: Checkpoint, tokens_BT: Tensor, out: Path, pruner: Wanda | Magnitude, watched: bool = True
    ):
        stage = WeightStage(pruner, "decoder")
        found = Diagnostics(stage.prunable)
        self.walk = Walk(source, list(tokens_BT.split(3)), CPU, "test", PLAN, stage.needs_data)
        ratios = [LayerRatios(ratio) for ratio in (0.5, 0.0, 0.3)]
        self.layers: list[PrunedLayer]
        if watched:
            self.walk.edit = lambda layer: found.before(layer, PLAN.of(layer.index), source.read_layer)
            pruning = Pruning(stage, ratios, self.walk, CheckpointWriter(source, out), found.watch)
            self.layers = prune_layers([pruning])[0].layers
            self.json = found.json([0.1, None, 0.3])
        else:
            self.layers = prune_layers([Pruning(stage, ratios, self.walk, CheckpointWriter(source, out))])[0].layers
        self.written = Checkpoint(out, None)


def hashes(path: Path) -> dict[str, str]:
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


@pytest.mark.parametrize(
    "make", [wanda, lambda: wanda(inputs="dense"), portioned, lambda: MAGNITUDE], ids=["wanda", "dense", "two", "none"]
)
def test_looking_changes_nothing(
    mixtral: Checkpoint, tokens_BT: Tensor, tmp_path: Path, make: Callable[[], Wanda | Magnitude]
) -> None:
    Pruned(mixtral, tokens_BT, tmp_path / "watched", make())
    Pruned(mixtral, tokens_BT, tmp_path / "plain", make(), watched=False)
    assert hashes(tmp_path / "watched") == hashes(tmp_path / "plain")


def test_it_is_plain_json_of_every_layer(checkpoint: Checkpoint, tokens_BT: Tensor, tmp_path: Path) -> None:
    found = Pruned(checkpoint, tokens_BT, tmp_path / "out", wanda()).json
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["kurtosis"].keys() == {"before", "experts", "weights"}
    assert [layer["layer"] for layer in found["per_layer"]] == [0, 1, 2]
    assert [layer["saliency_outlier_percent"] for layer in found["per_layer"]] == [0.1, None, 0.3]


def values(source: Checkpoint, index: int, change: Callable[[MoELayer], None] = lambda layer: None) -> np.ndarray:
    layer = source.read_layer(index)
    change(layer)
    return np.concatenate([matrix.weight_OC.double().numpy().ravel() for matrix in layer.matrices()])


def test_kurtosis_as_read_without_experts_and_without_weights(
    checkpoint: Checkpoint, tokens_BT: Tensor, tmp_path: Path
) -> None:
    """From the files, by numpy: removed experts count before, merged ones after, zeros where they are not left out."""
    pruned = Pruned(checkpoint, tokens_BT, tmp_path / "out", wanda())
    stages = {
        "before": [values(checkpoint, i) for i in range(3)],
        "experts": [values(checkpoint, i, edit) for i in range(3)],
        "weights": [values(pruned.written, i) for i in range(3)],
    }
    for stage, layers in stages.items():
        for found, of in (
            (pruned.json["kurtosis"][stage], np.concatenate(layers)),
            *((pruned.json["per_layer"][i]["kurtosis"][stage], layers[i]) for i in range(3)),
        ):
            assert found["all"] == pytest.approx(kurtosis(of))
            assert found["nonzero"] == pytest.approx(kurtosis(of[of != 0]))
    before, after = (pruned.json["per_layer"][2]["kurtosis"][stage] for stage in ("before", "experts"))
    assert before != after


def test_sparsity_of_each_matrix_is_counted_on_disk(checkpoint: Checkpoint, tokens_BT: Tensor, tmp_path: Path) -> None:
    pruned = Pruned(checkpoint, tokens_BT, tmp_path / "out", wanda())
    for index, layer in enumerate(pruned.json["per_layer"]):
        on_disk = {
            m.name: float((m.weight_OC == 0).double().mean()) for m in pruned.written.read_layer(index).matrices()
        }
        assert layer["sparsity"] == pytest.approx(on_disk)


def by_hand(pruned: Pruned, source: Checkpoint, inputs: Walk, index: int) -> float:
    """Both layers, read from disk, on what `inputs` gives there."""
    (step,) = [step for step in inputs if step.layer.index == index]
    outputs = []
    for checkpoint, change in ((source, edit), (pruned.written, lambda layer: None)):
        step.layer = checkpoint.read_layer(index)
        change(step.layer)
        step.forward()
        outputs.append(torch.cat(step.outputs_BTD or []).double())
    dense, after = outputs
    return float((after - dense).norm() / dense.norm())


def test_reconstruction_error_is_that_of_the_layer_on_its_own_inputs(
    checkpoint: Checkpoint, tokens_BT: Tensor, tmp_path: Path
) -> None:
    """What earlier layers lost is not counted again: both outputs are on what the pruned predecessors give."""
    pruned = Pruned(checkpoint, tokens_BT, tmp_path / "out", wanda())
    for index in (0, 2):
        walk = Walk(pruned.written, list(tokens_BT.split(3)), CPU, "test")
        found = pruned.json["per_layer"][index]["reconstruction_error"]
        assert found == pytest.approx(by_hand(pruned, checkpoint, walk, index), rel=1e-4)
        assert found > 0.01
    assert pruned.json["per_layer"][1]["reconstruction_error"] == 0


def test_reconstruction_error_behind_dense_layers(mixtral: Checkpoint, tokens_BT: Tensor, tmp_path: Path) -> None:
    """The walk goes on with the dense outputs, whatever was run to compare."""
    pruned = Pruned(mixtral, tokens_BT, tmp_path / "out", wanda(inputs="dense"))
    for index in (0, 2):
        walk = Walk(mixtral, list(tokens_BT.split(3)), CPU, "test", PLAN)
        found = pruned.json["per_layer"][index]["reconstruction_error"]
        assert found == pytest.approx(by_hand(pruned, mixtral, walk, index), rel=1e-4)


def test_reconstruction_error_of_a_layer_pruned_in_portions(
    mixtral: Checkpoint, tokens_BT: Tensor, tmp_path: Path
) -> None:
    """Later portions run behind experts that are pruned already; the comparison is with the layer as it was."""
    pruned = Pruned(mixtral, tokens_BT, tmp_path / "out", portioned())
    walk = Walk(pruned.written, list(tokens_BT.split(3)), CPU, "test")
    found = pruned.json["per_layer"][0]["reconstruction_error"]
    assert found == pytest.approx(by_hand(pruned, mixtral, walk, 0), rel=1e-4)


def test_it_costs_the_last_layers_pass_and_no_more(mixtral: Checkpoint, tokens_BT: Tensor, tmp_path: Path) -> None:
    """Layers 0 and 2 are pruned: two passes each, of which only layer 2's second is additional; layer 1 runs once."""
    assert Pruned(mixtral, tokens_BT, tmp_path / "plain", wanda(), watched=False).walk.layer_passes == 4
    assert Pruned(mixtral, tokens_BT, tmp_path / "watched", wanda()).walk.layer_passes == 5


def test_what_needs_no_data_is_not_run(mixtral: Checkpoint, tokens_BT: Tensor, tmp_path: Path) -> None:
    pruned = Pruned(mixtral, tokens_BT, tmp_path / "out", MAGNITUDE)
    assert pruned.walk.layer_passes == 0
    assert [layer["reconstruction_error"] for layer in pruned.json["per_layer"]] == [None] * 3
    assert all(layer["weight_outlier_percent"] is not None for layer in pruned.json["per_layer"])
