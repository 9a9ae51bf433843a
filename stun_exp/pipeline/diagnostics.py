"""What pruning did to the weights and to the layers' outputs, for the report.

Shapes: O rows and C columns of a matrix, T tokens, D hidden size.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from stun_exp.moe.layers import Matrix, MoELayer
from stun_exp.moe.plan import LayerPlan
from stun_exp.streaming.walk import Step

OUTLIER_MULTIPLE = 5
"""OWL's M where weights alone are compared."""
EXPERTS_AT_ONCE = 4
"""Experts that are gone, read again to be looked at."""
ReadLayer = Callable[[int, Sequence[int]], MoELayer]
"""A layer with some of its experts, read from disk."""
CPU_CHUNK, GPU_CHUNK = 1 << 16, 1 << 24
"""Weights looked at together: what a CPU's cache holds in fp64, and what is worth starting a kernel for."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and central moments (sums of powers of deviations from the mean) of numbers, in fp64."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets of numbers together (Chan et al. 1979, Pebay 2008); no digits are lost to a mean."""
        a, b, n = self.count, other.count, self.count + other.count
        if not a or not b:
            return self if a else other
        d = other.mean - self.mean
        return Moments(
            n,
            self.mean + d * (b / n),
            self.m2 + other.m2 + d**2 * (a * b / n),
            self.m3 + other.m3 + d**3 * (a * b * (a - b) / n**2) + 3 * d * (a * other.m2 - b * self.m2) / n,
            self.m4
            + other.m4
            + d**4 * (a * b * (a * a - a * b + b * b) / n**3)
            + 6 * d**2 * (a * a * other.m2 + b * b * self.m2) / n**2
            + 4 * d * (a * other.m3 - b * self.m3) / n,
        )

    def kurtosis(self) -> float | None:
        """E[((w - mu) / sigma)^4], 3 for a normal distribution; None without any spread, or with NaN or infinity."""
        value = self.count * self.m4 / self.m2**2 if self.m2 > 0 else None
        return value if value is not None and value < float("inf") else None


@dataclass(frozen=True)
class Weights:
    """A set of weights: the moments of those that are not zero, and the number of zeros."""

    nonzero: Moments = Moments()
    zeros: int = 0

    def __add__(self, other: "Weights") -> "Weights":
        return Weights(self.nonzero + other.nonzero, self.zeros + other.zeros)

    def sparsity(self) -> float:
        return self.zeros / max(self.zeros + self.nonzero.count, 1)

    def kurtosis(self) -> dict[str, float | None]:
        """Of all weights, zeros included, and of those that are not zero.

        STUN's argument, that unstructured pruning takes the weights near zero and leaves a bimodal distribution of low
        kurtosis, is about the second; zeros among the numbers raise the first.
        """
        return {"all": (self.nonzero + Moments(self.zeros)).kurtosis(), "nonzero": self.nonzero.kurtosis()}


def weights_of(weight_OC: Tensor) -> Weights:
    """The weights of one matrix, a chunk at a time."""
    rows = max((GPU_CHUNK if weight_OC.is_cuda else CPU_CHUNK) // weight_OC.shape[1], 1)
    found = Weights()
    for chunk in torch.split(weight_OC, rows):
        values = chunk.flatten().double()
        kept = values != 0
        count = kept.sum()
        mean = values.sum() / count.clamp(min=1)
        deviation = values - mean * kept  # zeros stay zero, and so add to no sum
        square = deviation.square()
        sums = torch.stack(
            [count.double(), mean, square.sum(), torch.dot(square, deviation), torch.dot(square, square)]
        )
        number, *moments = sums.tolist()
        found += Weights(Moments(int(number), *moments), values.numel() - int(number))
    return found


def outlier_percent(matrices: Sequence[Matrix]) -> float | None:
    """Percentage of weights with |w| > 5 times the mean |w| of all; OWL's measure with weights alone for saliency."""
    count = sum(matrix.weight_OC.numel() for matrix in matrices)
    if not count:
        return None
    total = sum(float(matrix.weight_OC.abs().sum(dtype=torch.float64)) for matrix in matrices)
    threshold = OUTLIER_MULTIPLE * total / count
    return 100 * sum(int((matrix.weight_OC.abs() > threshold).sum()) for matrix in matrices) / count


class Diagnostics:
    """Looks at each layer as it is read, as the expert stage left it, and as the second stage leaves it."""

    def __init__(self, matrices: Callable[[MoELayer], list[Matrix]], batches: int | None = None):
        self.matrices = matrices
        """The prunable ones of a layer."""
        self.batches = batches
        """How many of a step's batches are compared; None for all."""
        self.weights: dict[str, list[Weights]] = {"before": [], "experts": [], "weights": []}
        self.layers: list[dict[str, Any]] = []

    def before(self, layer: MoELayer, plan: LayerPlan | None, read: ReadLayer) -> None:
        """Looks at a layer as it was before the expert stage, of which `layer` is what the `plan` leaves.

        Experts that are gone, or part of a merged one, are read again, a few at a time.
        """
        groups = plan.groups if plan else [[expert] for expert in range(layer.num_experts)]
        whole = {place for place, group in enumerate(groups) if len(group) == 1}
        kept = (m for m in self.matrices(layer) if m.expert is None or m.expert in whole)
        found = _together(weights_of(matrix.weight_OC) for matrix in kept)
        as_they_were = {groups[place][0] for place in whole}
        others = [expert for expert in range(plan.num_experts if plan else 0) if expert not in as_they_were]
        for first in range(0, len(others), EXPERTS_AT_ONCE):
            part = read(layer.index, others[first : first + EXPERTS_AT_ONCE])
            experts = (matrix for matrix in self.matrices(part) if matrix.expert is not None)
            found += _together(weights_of(matrix.weight_OC) for matrix in experts)
        self.weights["before"].append(found)

    @contextmanager
    def watch(self, step: Step) -> Iterator[None]:
        """Looks at a layer before and after it is pruned, which happens in the block.

        The layer is run once more, in place of the walk: only the last layer's pass, and those of a pruner that
        wants the dense layers' outputs to go on, are additional.
        """
        layer, dense_BTD = step.layer, list[Tensor]()
        self._weights("experts", layer)
        outliers = outlier_percent(self.matrices(layer))

        def keep(output_BTD: Tensor) -> None:
            # Later passes have pruned experts in them, and outputs of each would fill the memory.
            if len(dense_BTD) < len(step.hidden_BTD[: self.batches]):
                dense_BTD.append(output_BTD)

        with _outputs(layer.module, keep):
            yield
        sparsity = self._weights("weights", layer)
        self.layers.append(
            {
                "layer": layer.index,
                "weight_outlier_percent": outliers,
                "reconstruction_error": _reconstruction_error(step, dense_BTD, self.batches),
                "sparsity": sparsity,
            }
        )

    def _weights(self, stage: str, layer: MoELayer) -> dict[str, float]:
        """Sparsity of each matrix; all of their weights together are kept under the name of the stage."""
        found = {matrix.name: weights_of(matrix.weight_OC) for matrix in self.matrices(layer)}
        self.weights[stage].append(_together(found.values()))
        return {name: weights.sparsity() for name, weights in found.items()}

    def json(self, measured: Sequence[float | None]) -> dict[str, Any]:
        """The report's diagnostics; `measured` is the percentage of outliers that an allocation found in each layer.

        Kurtosis is that of the prunable weights: as read, after the expert stage (`experts`) and after the second
        (`weights`). Reconstruction error is ||pruned - unpruned|| / ||unpruned|| over a layer's outputs on the
        calibration tokens (with inputs=dense on the first batch of them), both on the inputs that the pruned layer had;
        null where nothing was run. Matrices are those
        after the expert stage, with its numbering.
        """
        return {
            "kurtosis": {stage: _together(found).kurtosis() for stage, found in self.weights.items()},
            "per_layer": [
                layer
                | {"saliency_outlier_percent": outliers}
                | {"kurtosis": {stage: found[place].kurtosis() for stage, found in self.weights.items()}}
                for place, (layer, outliers) in enumerate(zip(self.layers, measured, strict=True))
            ],
        }


def _together(weights: Iterable[Weights]) -> Weights:
    return reduce(Weights.__add__, weights, Weights())


def _reconstruction_error(step: Step, dense_BTD: list[Tensor], batches: int | None) -> float | None:
    """||pruned - dense|| / ||dense|| on the inputs of a step; frees `dense_BTD` as it goes."""
    if not dense_BTD:  # nothing was pruned here, or by weights alone
        return 0.0 if step.hidden_BTD else None
    error, norm = 0.0, 0.0

    def compare(pruned_BTD: Tensor) -> None:
        nonlocal error, norm
        dense = dense_BTD.pop(0).float()
        error += float((pruned_BTD.float() - dense).square().sum(dtype=torch.float64))
        norm += float(dense.square().sum(dtype=torch.float64))

    # Outputs that are there already are what the next layer shall see.
    given, handed_on = step.outputs_BTD, step.handed_on
    with _outputs(step.layer.module, compare):
        step.forward(batches=batches)
    if given is not None:
        step.outputs_BTD, step.handed_on = given, handed_on
    return (error / norm) ** 0.5 if 0 < norm < float("inf") and error < float("inf") else None


@contextmanager
def _outputs(module: nn.Module, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Shows every output of a layer inside the block."""
    hook = module.register_forward_hook(
        lambda module, args, output: see(output[0] if isinstance(output, tuple) else output)
    )
    try:
        yield
    finally:
        hook.remove()
