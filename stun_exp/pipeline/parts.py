"""What the structured pruner took from a model, as the journal and the report have it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerParts:
    """What a layer had and what it has."""

    layer: int
    dropped: bool
    units: tuple[int, int]
    """Hidden units of its feed-forward, before and after."""
    groups: tuple[int, int]
    """Groups of attention heads, before and after; none where heads do not go by themselves."""


@dataclass(frozen=True)
class Structure:
    """What the structured pruner took from a model."""

    layers: list[LayerParts]
    weights_removed: int
    """Weights of the decoder's matrices."""
    shards: dict[str, str]
    """The sha256 of the files that the model is kept in for the rest of the run."""
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
