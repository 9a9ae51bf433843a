"""What the report says of the structured stage."""

from dataclasses import asdict
from typing import Any

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.pipeline.budget import weights_in_scope
from stun_exp.pipeline.diagnostics import Weights, weights_of
from stun_exp.pipeline.inputs import Inputs


def structure_json(inputs: Inputs) -> dict[str, Any] | None:
    """What went, layer by layer, and the kurtosis of the layers' weights before and after; None if nothing did."""
    found = inputs.structure
    if found is None:
        return None
    return {
        "weights_removed": found.weights_removed,
        "share_removed": found.weights_removed / weights_in_scope(inputs.unpruned, "decoder"),
        "layers": [asdict(layer) for layer in found.layers],
        "kurtosis": {"before": _kurtosis(inputs.unpruned), "after": _kurtosis(inputs.checkpoint)},
        "facts": found.facts,
    }


def _kurtosis(checkpoint: Checkpoint) -> float | None:
    weights = Weights()
    for index in range(checkpoint.num_layers):
        for matrix in checkpoint.read_layer(index).matrices():
            weights += weights_of(matrix.weight_OC)
    return weights.kurtosis()["all"]
