"""What flows into the matrices of one layer: gathered on the calibration tokens, or taken from another run's."""

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from stun_exp.moe.inputs import InputStatistics, SharedInputs
from stun_exp.moe.layers import Matrix
from stun_exp.moe.observe import Statistic, observe
from stun_exp.moe.statistics import ExpertTokens
from stun_exp.pipeline.budget import Scope
from stun_exp.state.costs import StageCost
from stun_exp.state.statistics_cache import made_as
from stun_exp.streaming.walk import Step
from stun_exp.unstructured_pruner.protocol import InputStatistic, UnstructuredPruner

Empty = Callable[[int], InputStatistic | None]
"""Makes a statistic for so many inputs."""
Inputs = tuple[dict[str, InputStatistic], list[int]]
"""The statistic of each feed, those of starved experts replaced, and the tokens each expert received."""


def settings_of(pruner: UnstructuredPruner, scope: Scope, make: Empty) -> dict[str, Any]:
    """All on which it depends what is gathered of a model, and of which matrices: settings, and whose code gathers."""
    statistic = make(1)
    return {
        "modules": [] if statistic is None else [type(statistic).__module__],
        "scope": scope,
        "attention": pruner.attention,
        "min_tokens": pruner.min_tokens,
        "starved": pruner.starved,
        "statistic": None if statistic is None else made_as(statistic),
    }


def starved_experts(pruner: UnstructuredPruner, tokens: Sequence[int]) -> list[int]:
    """Experts that fewer tokens reached than the pruner wants."""
    return [expert for expert, count in enumerate(tokens) if count < pruner.min_tokens]


def gather(pruner: UnstructuredPruner, step: Step, matrices: Sequence[Matrix], make: Empty) -> Inputs:
    """What flows into some matrices of a layer, as statistics made by `make`; nothing if weights alone decide.

    Runs the layer, again if experts are starved, unless what it would gather is cached. ValueError that names the feed
    whose inputs are not finite.
    """
    if make(1) is None or not matrices:
        return {}, []
    filled = cast(Callable[[int], InputStatistic], make)
    if step.dense is None:
        return _gathered(pruner, step, matrices, filled)
    widths = {matrix.feed: matrix.weight_OC.shape[1] for matrix in matrices}
    empty = {feed: filled(width) for feed, width in widths.items()}
    cached = step.dense.find(step.layer.index, empty)
    if cached is None:
        start, before = time.perf_counter(), step.passes
        cached = _gathered(pruner, step, matrices, filled)
        passes = (step.passes - before) / step.num_layers
        cost = StageCost(charged_seconds=time.perf_counter() - start, forward_passes=passes)
        step.dense.keep(step.layer.index, empty, *cached, cost)
    elif step.hidden_BTD and step.outputs_BTD is None:
        step.forward(0.0)  # what it would have cost to gather is charged already
    return cached


def _gathered(
    pruner: UnstructuredPruner, step: Step, matrices: Sequence[Matrix], make: Callable[[int], InputStatistic]
) -> Inputs:
    layer = step.layer
    inputs = InputStatistics(layer, matrices, make)
    tokens = ExpertTokens(layer.num_experts)
    _run(step, [inputs, tokens])
    for matrix in matrices:
        if matrix.expert is None and not inputs.by_feed[matrix.feed].num_tokens:
            raise ValueError(
                f"layer {layer.index}: no calibration token was seen on its way into {matrix.name}; its family "
                f"({layer.family.model_type}) uses the weight by itself and must name it in `gates`"
            )
    counts: list[int] = tokens.count_E.tolist()
    statistics = inputs.by_feed | _instead(pruner, step, matrices, starved_experts(pruner, counts), make)
    for feed, statistic in statistics.items():
        if not statistic.is_finite():
            raise ValueError(
                f"layer {layer.index}: NaN or infinity flows into {feed} on the calibration text; the checkpoint "
                "is damaged, or its activations overflow: try model.dtype=float32"
            )
    return statistics, counts


def _instead(
    pruner: UnstructuredPruner,
    step: Step,
    matrices: Sequence[Matrix],
    starved: Sequence[int],
    make: Callable[[int], InputStatistic],
) -> dict[str, InputStatistic]:
    """What takes the place of the starved experts' statistics, by feed."""
    starved_matrices = [matrix for matrix in matrices if matrix.expert in starved]
    if not starved_matrices:
        return {}
    if pruner.starved == "every_token":
        experts = {matrix.expert for matrix in starved_matrices if matrix.expert is not None}
        everywhere = InputStatistics(step.layer, starved_matrices, make, experts)
        _run(step, [everywhere], 1 + len(experts) / step.layer.top_k)
        return everywhere.by_feed
    if pruner.starved == "shared":
        shared = SharedInputs(step.layer, starved_matrices, make)
        _run(step, [shared])
        return shared.by_feed
    return {matrix.feed: make(matrix.weight_OC.shape[1]) for matrix in starved_matrices}


def _run(step: Step, statistics: Sequence[Statistic], passes: float = 1.0) -> None:
    with observe(step.layer, statistics):
        step.forward(passes)
