"""What the backend of the evaluation cannot run."""

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stun_exp.checkpoint.checkpoint import Checkpoint
    from stun_exp.evaluation.benchmarks import PreparedBenchmarks


def check_backend(
    benchmarks: "PreparedBenchmarks", source: "Checkpoint", nf4: bool, skips: bool, counts: Collection[int] = ()
) -> None:
    """ValueError if vLLM could not run what this run is to write; `counts` are its layers' experts, once planned."""
    if benchmarks.vllm is None:
        return
    obstacle = benchmarks.vllm.obstacle(source.raw.get("architectures") or [])
    hindrances = (
        (
            source.config.is_encoder_decoder,
            f"{source.config.model_type} is an encoder-decoder, and vLLM runs decoders only; pass",
        ),
        (obstacle is not None, f"{obstacle}; pass"),
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
