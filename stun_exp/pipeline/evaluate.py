"""The stages that measure a checkpoint as it lies on disk: what runs it, and on which devices."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import assemble
from stun_exp.checkpoint.nf4 import PartMemory, check_memory, memory
from stun_exp.checkpoint.placement import Places, find_places, free_memory, place_of
from stun_exp.evaluation.benchmarks import PreparedBenchmarks
from stun_exp.evaluation.records import Metric, Sample
from stun_exp.moe.layers import layers_of
from stun_exp.moe.skip import Skipped, skip_experts
from stun_exp.pipeline.context import RunContext, Stage
from stun_exp.pipeline.inputs import Inputs
from stun_exp.pipeline.verify import WrittenCheckpoint
from stun_exp.state.cache import Store
from stun_exp.state.computed import computed_once
from stun_exp.state.costs import StageCost
from stun_exp.state.device import circumstances
from stun_exp.state.fingerprint import made_by
from stun_exp.utils.json_files import write_json_lines

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluatedCheckpoint:
    """The metrics of a checkpoint, and how it was held while they were taken."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    memory: list[PartMemory] = field(default_factory=list)
    """Of each part of the layers, if they were held in 4 bits."""
    skips: dict[int, Skipped] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """The metrics as report.json has them."""
        return {key: asdict(metric) for key, metric in self.metrics.items()}


EVALUATE: Stage[EvaluatedCheckpoint] = Stage(
    "evaluate", warnings=lambda result: result.warnings, artifacts=lambda result: {"metrics.json": result.json()}
)
BASELINE: Stage[EvaluatedCheckpoint | None] = Stage("baseline")


def evaluate_pruned(
    run: RunContext, inputs: Inputs, written: WrittenCheckpoint, betas: Mapping[int, float]
) -> EvaluatedCheckpoint:
    """The benchmarks of the written checkpoint; `betas` are the thresholds of the layers that skip experts."""
    result = _of_run(run, inputs, written.checkpoint, written.identity(), betas)
    write_json_lines(run.out / "samples.jsonl", map(asdict, result.samples))
    return result


def evaluate_unpruned(run: RunContext, inputs: Inputs) -> EvaluatedCheckpoint | None:
    """The benchmarks of the model as it was, if that is asked for: measured once for all runs that share a cache."""
    if not inputs.benchmarks.baseline:
        return None
    result = _of_run(run, inputs, inputs.unpruned, inputs.unpruned_identity, {})
    write_json_lines(run.out / "baseline_samples.jsonl", map(asdict, result.samples))
    return result


def _of_run(
    run: RunContext, inputs: Inputs, checkpoint: Checkpoint, identity: Mapping[str, Any], betas: Mapping[int, float]
) -> EvaluatedCheckpoint:
    where = (inputs.tokenizer, run.device, run.in_nf4)
    return evaluate(inputs.benchmarks, checkpoint, identity, *where, betas, run.store, run.cost)


def evaluate(
    benchmarks: PreparedBenchmarks,
    checkpoint: Checkpoint,
    identity: Mapping[str, Any],
    tokenizer: Any,
    device: torch.device,
    nf4: bool,
    betas: Mapping[int, float],
    store: Store,
    cost: StageCost,
) -> EvaluatedCheckpoint:
    """The benchmarks' results for a checkpoint as it lies on disk; nothing is loaded for no benchmarks.

    What was measured before of a checkpoint of this `identity`, under equal circumstances, is taken from the `store`.
    `betas` are the thresholds of the layers that skip experts.

    Raises:
        ValueError: 4 bits did not reach a layer, or the devices are too small together.
    """
    if not benchmarks.benchmarks:
        return EvaluatedCheckpoint()
    key = {
        "checkpoint": identity,
        "dtype": str(checkpoint.dtype),
        "nf4": nf4,
        **circumstances(device),
        **made_by(__name__),
        "device map": benchmarks.device_map,
        "betas": {str(layer): beta for layer, beta in betas.items()},
        **benchmarks.depend_on(),
    }

    if store.holds("evaluations", key):
        log.info(
            "benchmarks: an equal checkpoint was measured before, as an equal plan leaves it; its figures are taken"
        )

    def measure() -> EvaluatedCheckpoint:
        return _measure(benchmarks, checkpoint, tokenizer, device, nf4, betas)

    return computed_once(store, "evaluations", key, EvaluatedCheckpoint, cost, measure)


def _measure(
    benchmarks: PreparedBenchmarks,
    checkpoint: Checkpoint,
    tokenizer: Any,
    device: torch.device,
    nf4: bool,
    betas: Mapping[int, float],
) -> EvaluatedCheckpoint:
    if benchmarks.vllm:
        torch.cuda.empty_cache()  # it takes its share of the whole GPU, and counts our unused pool as taken
        num_gpus = torch.cuda.device_count() if benchmarks.device_map == "auto" else 1
        figures = benchmarks.evaluate_in_vllm(checkpoint.path, tokenizer, checkpoint.dtype, max(num_gpus, 1))
        return EvaluatedCheckpoint(figures.metrics, figures.samples)
    places, warnings = _places(benchmarks, checkpoint, device, nf4)
    model = assemble(checkpoint, device, nf4, places=places)
    held = memory(layers_of(model, checkpoint.family), checkpoint.outlines) if nf4 else []
    check_memory(held)
    with skip_experts(model, checkpoint.family, betas) as skips:
        figures = benchmarks.evaluate(model, tokenizer, device)
    skipped = {layer: skip.so_far() for layer, skip in skips.items()}
    return EvaluatedCheckpoint(figures.metrics, figures.samples, held, skipped, warnings)


def _places(
    benchmarks: PreparedBenchmarks, written: Checkpoint, device: torch.device, nf4: bool
) -> tuple[Places | None, list[str]]:
    """Where the model's parts go, None for all on `device`, and what is to be said of it."""
    if benchmarks.device_map == "none":
        return None, []
    if device.type == "cpu":
        return None, ["eval.device_map=auto has no effect: the model runs on the CPU"]
    places = find_places(written, nf4, free_memory())
    if set(places.values()) == {0}:
        return None, ["eval.device_map=auto has no effect: the first GPU takes the whole model"]
    in_host = [name for name in written.paths if place_of(name, places) == "cpu"]
    if not in_host:
        return places, []
    return places, [
        f"eval.device_map=auto: {len(in_host)} of {written.num_layers} layers lie in host memory and are brought to "
        "the GPU each time that they run, which is slow"
    ]
