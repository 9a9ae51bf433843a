"""What can be said of a run before its weights are read."""

from collections.abc import Iterator

from stun_exp.calibration import Calibration
from stun_exp.disk.checkpoint import Checkpoint
from stun_exp.evaluation import Prepared
from stun_exp.moe.plan import Plan


def check_length(calibration: Calibration, checkpoint: Checkpoint) -> None:
    """ValueError for sequences that are longer than the model takes."""
    longest = getattr(checkpoint.config, "max_position_embeddings", None)
    if longest is not None and calibration.sequence_length > longest:
        raise ValueError(
            f"calibration.sequence_length={calibration.sequence_length}: the model takes at most {longest} tokens "
            f"(max_position_embeddings); pass calibration.sequence_length={longest} or less"
        )


def known_at_once(checkpoint: Checkpoint, benchmarks: Prepared, skips: bool, nf4: bool) -> Iterator[str]:
    """Warnings of settings without effect, of figures that are no results, and of what is left as it is."""
    if skips and not benchmarks.benchmarks:
        yield "skipping has no effect on any figure: no benchmark is run (eval=none)"
    if benchmarks.limit is not None:
        yield f"eval.limit={benchmarks.limit}: the figures are of each task's first items, for trials only"
    if nf4 and checkpoint.scratch is not None:
        yield "model.load=nf4 holds the experts of the layer that is run in memory, whatever stream.experts says"
    if how := checkpoint.packing.method:
        yield f"the checkpoint is packed ({how}): unpacked on reading, and written in {checkpoint.dtype}"
    for part, keys in checkpoint.keys.unused.items():
        yield f"{part} ({len(keys)} tensors) is on disk but not run by the architecture; it is copied unpruned"


def known_of(plan: Plan, checkpoint: Checkpoint) -> Iterator[str]:
    """Warnings of what a plan asks for: those of the expert pruner, and of the memory that merging takes."""
    yield from plan.warnings
    merged = [layer.layer for layer in plan.layers if any(len(group) > 1 for group in layer.groups)]
    if merged and checkpoint.scratch is not None:
        where = ", ".join(map(str, merged))
        yield f"layer {where}: merged experts are put together in memory, whatever stream.experts says"
