"""What of each layer of a dense model goes: one pass over the calibration tokens, or one forwards and one back."""

from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_map_only

from stun_exp.moe.observe import Statistic, observe
from stun_exp.pipeline.context import RunContext
from stun_exp.pipeline.inputs import Inputs
from stun_exp.streaming.backward import BackwardWalk
from stun_exp.structured_pruner.protocol import Cuts, StructuredPruner


class Decided(NamedTuple):
    """What goes, and what was seen of each layer."""

    cuts: Cuts
    statistics: list[list[Statistic]]
    """What the weights that stay are adjusted by, layer by layer; none where they stay as they are."""
    loss: float | None = None
    """Of a next token, where gradients are needed."""


def decide_cuts(run: RunContext, inputs: Inputs, pruner: StructuredPruner) -> Decided:
    """What the pruner says of the inputs' checkpoint."""
    if pruner.needs_gradients():
        return _by_gradients(run, inputs, pruner)
    needs_data = any(pruner.statistics(layer) for layer in inputs.checkpoint.outlines[:1])
    walk = inputs.walk(run, "selecting parts", runs=needs_data)
    findings = []
    for step in walk:
        statistics = pruner.statistics(step.layer)
        if needs_data:
            with observe(step.layer, statistics):
                step.forward()
        findings.append(pruner.examine(step.layer, statistics))
    run.cost.forward_passes += walk.forward_passes
    return Decided(pruner.plan(findings), [[] for _ in findings])


def _by_gradients(run: RunContext, inputs: Inputs, pruner: StructuredPruner) -> Decided:
    """Statistics of all layers are kept, in files where they take more room than hidden states may."""
    forwards = inputs.walk(run, "selecting parts")
    walk = BackwardWalk(forwards)
    findings, seen, kept = list[Any](), list[list[Statistic]](), list[Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        forwards.spill.keep(kept, tensor.cpu())
        return kept[-1]

    for step in walk:
        statistics = pruner.statistics(step.layer)
        with observe(step.layer, statistics):
            step.backward()
        findings.append(pruner.examine(step.layer, statistics))
        for statistic in statistics:
            statistic.restore_(tree_map_only(Tensor, keep, statistic.state()))
        seen.append(statistics)
    run.cost.forward_passes += walk.forward_passes
    return Decided(pruner.plan(findings[::-1]), seen[::-1], walk.loss)
