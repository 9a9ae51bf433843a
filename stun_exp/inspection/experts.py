"""What `stun inspect --experts` prints: how redundant a checkpoint's experts are by their routers alone."""

from dataclasses import dataclass
from statistics import mean

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.moe.redundancy import nearest_distances


@dataclass(frozen=True)
class RouterRow:
    """One layer's router: distances from each row to the nearest other, over the mean length of a row."""

    layer: int
    num_experts: int
    nearest: float
    """Of the two rows that are most alike."""
    mean: float


@dataclass(frozen=True)
class RouterRedundancy:
    """Every router's; as text, what `stun inspect --experts` prints."""

    source: str
    layers: list[RouterRow]

    def __str__(self) -> str:
        lines = [
            f"{self.source}: distance from each router row to the nearest other, over the mean length of a row",
            "layer  experts  most alike   mean",
            *(f"{row.layer:5}  {row.num_experts:7}  {row.nearest:10.3f}  {row.mean:5.3f}" for row in self.layers),
            f"all    {sum(row.num_experts for row in self.layers):7}  {min(row.nearest for row in self.layers):10.3f}  "
            f"{mean(row.mean for row in self.layers):5.3f}",
            "0 is a copy, 1.414 what rows drawn at random have; only routers were read",
        ]
        return "\n".join(lines)


def router_redundancy(source: str, checkpoint: Checkpoint) -> RouterRedundancy:
    """How alike the router rows of each layer with experts are; reads nothing but routers.

    Raises:
        ValueError: No layer has experts.
    """
    layers = [index for index in range(checkpoint.num_layers) if checkpoint.outline(index).is_moe]
    if not layers:
        raise ValueError(f"{source}: no layer has experts")
    found = [(index, nearest_distances(checkpoint.read_router_rows(index))) for index in layers]
    rows = [RouterRow(index, len(near_E), float(near_E.min()), float(near_E.mean())) for index, near_E in found]
    return RouterRedundancy(source, rows)
