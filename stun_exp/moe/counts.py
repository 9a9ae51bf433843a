"""How many experts layers keep, in words."""

from collections.abc import Iterable
from itertools import groupby


def by_layer(counts: Iterable[tuple[int, int, int]]) -> list[str]:
    """`layers 0-2: 5 of 8` for (layer, experts kept, experts) of each layer; neighbors with equal numbers together."""
    told = []
    for (kept, num_experts), alike in groupby(counts, key=lambda one: one[1:]):
        layers = [layer for layer, *_ in alike]
        where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}-{layers[-1]}"
        told.append(f"{where}: {kept} of {num_experts}")
    return told
