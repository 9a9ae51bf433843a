"""The stage that measures a checkpoint as it lies on disk: what runs it, and on which devices."""

import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from pydantic import TypeAdapter

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import assemble
from stun_exp.checkpoint.nf4 import PartMemory, check_memory, memory
from stun_exp.checkpoint.placement import Places, find_places, free_memory, place_of
from stun_exp.evaluation.benchmarks import Prepared
from stun_exp.evaluation.harness import Metric, Sample
from stun_exp.moe.layers import layers_of
from stun_exp.moe.skip import Skipped, skip_experts
from stun_exp.state.cache import Store
from stun_exp.state.code import made_by
from stun_exp.state.device import circumstances


@dataclass(frozen=True)
class Evaluation:
    """The figures of a checkpoint, and how it was held while they were taken."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    memory: list[PartMemory] = field(default_factory=list)
    """Of each part of the layers, if they were held in 4 bits."""
    skips: dict[int, Skipped] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    cached_seconds: float = 0.0
    """What another run spent on it, if it was taken from the cache."""


def check_backend(
    benchmarks: Prepared, source: Checkpoint, nf4: bool, skips: bool, counts: Collection[int] = ()
) -> None:
    """ValueError if vLLM could not run what this run is to write; `counts` are its layers' experts, once planned."""
    if benchmarks.backend != "vllm":
        return
    hindrances = (
        (
            source.config.is_encoder_decoder,
            f"{source.config.model_type} is an encoder-decoder, and vLLM runs decoders only; pass",
        ),
        (nf4, "vLLM cannot hold weights as model.load=nf4 does; pass model.load=full or"),
        (skips, "vLLM runs all experts that a token chooses; pass skipping=none or"),
        (
            len(set(counts)) > 1,
            f"the plan keeps {min(counts, default=0)} to {max(counts, default=0)} experts in a layer, and vLLM needs "
            "equally many in all; choose another expert_pruner or ratio, or pass",
        ),
    )
    for hinders, what in hindrances:
        if hinders:
            raise ValueError(f"eval.backend=vllm: {what} eval.backend=hf")


def evaluate(
    benchmarks: Prepared,
    checkpoint: Checkpoint,
    identity: Mapping[str, Any],
    tokenizer: Any,
    device: torch.device,
    nf4: bool,
    betas: Mapping[int, float],
    store: Store,
) -> Evaluation:
    """The benchmarks' figures of a checkpoint as it lies on disk; nothing is loaded for no benchmarks.

    What was measured before of a checkpoint of this `identity`, under equal circumstances, is taken from the `store`.
    `betas` are the thresholds of the layers that skip experts. ValueError for layers that 4 bits did not reach, and for
    devices that are too small together.
    """
    if not benchmarks.benchmarks:
        return Evaluation()
    key = {
        "checkpoint": identity,
        "dtype": str(checkpoint.dtype),
        "nf4": nf4,
        **circumstances(device),
        **made_by("stun_exp.pipeline.evaluate"),
        "device map": benchmarks.device_map,
        "betas": {str(layer): beta for layer, beta in betas.items()},
        **benchmarks.depend_on(),
    }
    found = store.find("evaluations", key)
    if found is not None:
        return TypeAdapter(Evaluation).validate_python(found)
    start = time.perf_counter()
    evaluation = _measure(benchmarks, checkpoint, tokenizer, device, nf4, betas)
    store.add("evaluations", key, asdict(evaluation) | {"cached_seconds": time.perf_counter() - start})
    return evaluation


def _measure(
    benchmarks: Prepared,
    checkpoint: Checkpoint,
    tokenizer: Any,
    device: torch.device,
    nf4: bool,
    betas: Mapping[int, float],
) -> Evaluation:
    if benchmarks.backend == "vllm":
        torch.cuda.empty_cache()  # it takes its share of the whole GPU, and counts our unused pool as taken
        num_gpus = torch.cuda.device_count() if benchmarks.device_map == "auto" else 1
        figures = benchmarks.evaluate_in_vllm(checkpoint.path, checkpoint.dtype, max(num_gpus, 1))
        return Evaluation(figures.metrics, figures.samples)
    places, warnings = _places(benchmarks, checkpoint, device, nf4)
    model = assemble(checkpoint, device, nf4, places=places)
    held = memory(layers_of(model, checkpoint.family), checkpoint.outlines) if nf4 else []
    check_memory(held)
    with skip_experts(model, checkpoint.family, betas) as skips:
        figures = benchmarks.evaluate(model, tokenizer, device)
    skipped = {layer: skip.so_far() for layer, skip in skips.items()}
    return Evaluation(figures.metrics, figures.samples, held, skipped, warnings)


def _places(
    benchmarks: Prepared, written: Checkpoint, device: torch.device, nf4: bool
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
