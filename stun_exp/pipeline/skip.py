"""The stage that measures each layer's skipping threshold, and what the report says of skipping."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.nf4 import as_quantized
from stun_exp.moe.observe import observe
from stun_exp.moe.skip import GateRatios, Skipped
from stun_exp.pipeline.context import RunContext, Stage
from stun_exp.pipeline.experts import moe_layers
from stun_exp.pipeline.inputs import Inputs
from stun_exp.skipping.protocol import Skipping
from stun_exp.streaming.walk import Walk, as_it_is


@dataclass(frozen=True)
class Threshold:
    """One layer's threshold, and the share of the calibration tokens' experts that it skips."""

    beta: float
    calibration: float


SKIP: Stage[dict[int, Threshold]] = Stage("skip")


def skip(run: RunContext, inputs: Inputs, written: Checkpoint) -> dict[int, Threshold]:
    """The threshold of each layer that skips experts when the pruned model is used."""
    precision, targets_BT = as_quantized if run.in_nf4 else as_it_is, inputs.tokens.targets_BT
    walk = Walk(
        written, inputs.tokens.batches_BT, run.device, "measuring gates", targets_BT=targets_BT, precision=precision
    )
    thresholds = layer_thresholds(run.settings.skipping, inputs.gates, walk)
    if thresholds and run.keeps_checkpoint:
        run.warn("the written checkpoint does not skip: the thresholds are in report.json alone")
    run.cost.forward_passes += walk.forward_passes
    return thresholds


def gate_statistics(skipping: Skipping, checkpoint: Checkpoint) -> dict[int, GateRatios]:
    """What to gather in each layer that is to skip; empty if none is. Reads no weights."""
    if skipping.skips and not moe_layers(checkpoint):
        raise ValueError("skipping: the model is dense, and there are no experts to skip; pass skipping=none")
    statistics = {layer.index: skipping.statistic(layer) for layer in moe_layers(checkpoint)}
    return {index: statistic for index, statistic in statistics.items() if statistic is not None}


def layer_thresholds(skipping: Skipping, statistics: dict[int, GateRatios], walk: Walk) -> dict[int, Threshold]:
    """The threshold of each layer in `statistics`, which is emptied; walks the model only if there is one."""
    if not statistics:
        return {}
    thresholds = {}
    for step in walk:
        ratios = statistics.pop(step.layer.index, None)
        if ratios is None:
            continue
        with observe(step.layer, [ratios]):
            step.forward()
        beta = skipping.beta(ratios)
        thresholds[step.layer.index] = Threshold(beta, ratios.skipped(beta))
    return thresholds


def skipping_json(thresholds: Mapping[int, Threshold], skips: Mapping[int, Skipped]) -> dict[str, Any] | None:
    """The report's `skipping`: shares of the tokens' experts that were skipped, overall and by layer; None if off.

    `evaluation` counts every token that the benchmarks ran, padding included; it is null if they ran none.
    """
    if not thresholds:
        return None
    total = sum(skip.total for skip in skips.values())
    return {
        # Every layer saw the same tokens.
        "calibration": sum(threshold.calibration for threshold in thresholds.values()) / len(thresholds),
        "evaluation": sum(skip.skipped for skip in skips.values()) / total if total else None,
        "per_layer": [
            {
                "layer": index,
                "beta": threshold.beta,
                "calibration": threshold.calibration,
                "evaluation": skips[index].share() if index in skips else None,
            }
            for index, threshold in thresholds.items()
        ],
    }
