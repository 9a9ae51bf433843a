"""Benchmarks of streaming: memory against layers, time against a model in memory, and how much of the time overlaps."""

import tempfile
from pathlib import Path
from typing import Any

from scripts.benchmarks.scale import pruned_by_a_child
from scripts.benchmarks.scale_parts import make
from scripts.benchmarks.timing import alternate, ratio

# A Mixtral layer of 101 MB: large beside what a process has anyway, small enough to repeat.
DIMENSIONS = {
    "model_type": "mixtral",
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 4096,
}


def stream_rss_per_layer() -> dict[str, Any]:
    """Peak memory of pruning 24 layers less that of 8, over sixteen layers' bytes; at most 0.02."""
    peaks = {}
    for num_layers in (8, 24):
        with tempfile.TemporaryDirectory() as folder:
            layer_bytes = make(DIMENSIONS, num_layers, Path(folder) / "source")
            peaks[num_layers] = pruned_by_a_child(Path(folder), "in_memory")["peak_gb"]
    return {**ratio(1e9 * (peaks[24] - peaks[8]), 16 * layer_bytes), "unit": "of a layer, for each layer"}


def stream_over_memory() -> dict[str, Any]:
    """Pruning and writing 6 layers streamed, over the same with all layers in memory, loading included; at most 1.2."""
    from stun_exp.checkpoint.checkpoint import Checkpoint

    class InMemory(Checkpoint):
        """Reads every layer before the first is worked on."""

        def __init__(self, path: Path):
            super().__init__(path, None)
            self.layers = [self.read_layer(index) for index in range(self.num_layers)]

        def read_planned(self, index: int, plan: Any) -> Any:
            return self.layers[index]

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        make(DIMENSIONS, 6, source)
        number = iter(range(1000))

        def pruned(checkpoint: Checkpoint) -> None:
            _prune(checkpoint, Path(folder) / str(next(number)))

        return ratio(*alternate(lambda: pruned(Checkpoint(source, None)), lambda: pruned(InMemory(source))))


def stream_overlap() -> dict[str, Any]:
    """Seconds of pruning and writing 6 layers, over the largest of reading, computing and writing; at most 1.4."""
    from scripts.benchmarks.scale import timed_method
    from scripts.benchmarks.timing import timed
    from stun_exp.checkpoint.checkpoint import Checkpoint
    from stun_exp.checkpoint.writer import CheckpointWriter
    from stun_exp.pipeline import prune_layer
    from stun_exp.streaming.walk import Step

    seconds = {"read": 0.0, "compute": 0.0, "write": 0.0}
    timed_method(Checkpoint, "read_planned", seconds, "read")
    timed_method(CheckpointWriter, "write_layer", seconds, "write")
    timed_method(prune_layer, "prune_layer_", seconds, "compute")
    timed_method(Step, "forward", seconds, "compute")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        make(DIMENSIONS, 6, source)
        checkpoint = Checkpoint(source, None)
        wall = timed(lambda: _prune(checkpoint, Path(folder) / "out"))
    return ratio(wall, max(seconds.values()))


def _prune(checkpoint: Any, out: Path) -> None:
    """Half of the weights by Wanda on 2,048 tokens, layer after layer, and the result on disk."""
    import torch

    from stun_exp.allocation.ratios import LayerRatios
    from stun_exp.checkpoint.writer import CheckpointWriter
    from stun_exp.pipeline import prune_layer
    from stun_exp.pipeline.weight_stage import WeightStage
    from stun_exp.streaming.walk import Walk
    from stun_exp.unstructured_pruner.wanda import Wanda

    pruner = Wanda(
        attention=True, group="row", pattern="unstructured", inputs="pruned", min_tokens=1, starved="every_token"
    )
    stage, writer = WeightStage(pruner, "decoder"), CheckpointWriter(checkpoint, out)
    tokens = torch.randint(0, 2000, (8, 256), generator=torch.Generator().manual_seed(0))
    for step in Walk(checkpoint, torch.split(tokens, 2), torch.device("cpu"), "bench"):
        prune_layer.prune_layer_(stage, step, LayerRatios(0.5))
        writer.write_layer(step.layer)
    writer.finish()
