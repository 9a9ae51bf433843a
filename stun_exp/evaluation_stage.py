"""The stage that measures the written checkpoint, as it lies on disk: what runs it, and on which devices."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from stun_exp.disk.checkpoint import Checkpoint
from stun_exp.disk.load import load_pruned
from stun_exp.disk.place import Places, find_places, free_memory, place_of
from stun_exp.evaluation import Metric, Prepared
from stun_exp.moe.layers import layers_of
from stun_exp.moe.skip import Skip, skip_experts
from stun_exp.nf4 import PartMemory, check_memory, memory


@dataclass(frozen=True)
class Evaluation:
    """The figures of a written checkpoint, and how it was held while they were taken."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    memory: list[PartMemory] = field(default_factory=list)
    """Of each part of the layers, if they were held in 4 bits."""
    skips: dict[int, Skip] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


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


def evaluate_written(
    benchmarks: Prepared,
    written: Checkpoint,
    tokenizer: Any,
    device: torch.device,
    nf4: bool,
    betas: Mapping[int, float],
) -> Evaluation:
    """The benchmarks' figures of the checkpoint on disk, which is read again; nothing is loaded for no benchmarks.

    `betas` are the thresholds of the layers that skip experts. ValueError for layers that 4 bits did not reach, and for
    devices that are too small together.
    """
    if not benchmarks.benchmarks:
        return Evaluation()
    if benchmarks.backend == "vllm":
        torch.cuda.empty_cache()  # it takes its share of the whole GPU, and counts our unused pool as taken
        num_gpus = torch.cuda.device_count() if benchmarks.device_map == "auto" else 1
        return Evaluation(benchmarks.evaluate_in_vllm(written.path, written.dtype, max(num_gpus, 1)))
    places, warnings = _places(benchmarks, written, device, nf4)
    model = load_pruned(written.path, device, nf4, places)
    held = memory(layers_of(model, written.family), written.outlines) if nf4 else []
    check_memory(held)
    with skip_experts(model, written.family, betas) as skips:
        metrics = benchmarks.evaluate(model, tokenizer, device)
    return Evaluation(metrics, held, skips, warnings)


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
