"""How many experts each layer keeps, where that shows before calibration data or an expert's weights are read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.protocol import ExpertPruner
from stun_exp.moe.counts import by_layer
from stun_exp.pipeline.experts import LayerOnDisk, even_counts, moe_layers


@dataclass(frozen=True)
class KeptExperts:
    """How many experts each layer keeps."""

    num_kept: dict[int, int] | None
    """By layer; None where it does not show yet."""
    told: list[str]
    """The same in words, or why it does not show."""
    routers_read: bool


class _NotYet(Exception):
    """Why the numbers do not show before more is read."""


class _RouterOnDisk(LayerOnDisk):
    """A layer of whose weights only the router may be read."""

    was_read = False

    def router_rows_ED(self) -> Tensor:
        self.was_read = True
        rows_ED = super().router_rows_ED()
        if not rows_ED.isfinite().all():
            raise _NotYet("a router holds NaN or infinity")  # the run refuses it with all other such weights
        return rows_ED

    def expert_weights(self, experts: Sequence[int]) -> Iterator[Tensor]:
        raise _NotYet("the expert pruner needs the weights of experts")


def kept_experts(checkpoint: Checkpoint, pruner: ExpertPruner) -> KeptExperts:
    """What the pruner keeps of each layer, from the routers alone.

    ValueError, as in the run, where it cannot keep what is asked for.
    """
    layers = [_RouterOnDisk(checkpoint, layer.index) for layer in moe_layers(checkpoint)]
    if not layers:
        return KeptExperts({}, ["the model is dense"], False)
    if any(pruner.statistics(layer) for layer in layers):
        return KeptExperts(None, ["not known yet, the expert pruner needs calibration data"], False)
    even = even_counts(layers, pruner.removed_share() if pruner.has_ratio() else 0.0)
    try:
        num_kept = pruner.num_kept([pruner.examine(layer, [], n) for layer, n in zip(layers, even, strict=True)])
    except _NotYet as why:
        return KeptExperts(None, [f"not known yet, {why}"], any(layer.was_read for layer in layers))
    counts = [(layer.index, num_kept[layer.index], layer.num_experts) for layer in layers]
    return KeptExperts(num_kept, by_layer(counts), any(layer.was_read for layer in layers))
