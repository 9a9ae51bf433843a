"""How many experts each layer keeps, where config.json says it layer by layer: our way, and those of other tools."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from stun_exp.moe.families import MoEFamily
from stun_exp.moe.layers import MoELayer

EXPERTS_PER_LAYER = "experts_per_layer"
"""Our key: a list with a number for each layer, 0 for one without experts."""
PER_LAYER_NUM_EXPERTS = "per_layer_num_experts"
"""The same list under the key that RCO's patch of vLLM reads."""
PER_LAYER_CONFIG = "per_layer_config"
"""The settings of single layers that differ from the model's, as transformers has them."""

MOST = 10_000
"""Layers, or experts of a layer, that any model has: far more than those there are."""


@dataclass(frozen=True)
class ToldCounts:
    """What one key of config.json says of the layers."""

    key: str
    by_layer: dict[int, int]
    """0 for a layer without experts. A layer that is not named has as many as the config says of the whole model."""
    length: int | None
    """Of a list, which names every layer."""

    def fit_(self, layers: Sequence[MoELayer]) -> None:
        """Gives a model's layers, without weights, room for so many; ValueError if it has others than are named."""
        last = max(self.by_layer, default=-1)
        if self.length not in (None, len(layers)) or last >= len(layers):
            found = f"has {self.length} numbers" if self.length is not None else f"names layer {last}"
            raise ValueError(f"{self.key} {found}, and the model has {len(layers)} layers")
        for index, count in self.by_layer.items():
            layer = layers[index]
            if not count and layer.is_moe:
                raise ValueError(
                    f"{self.key} says that layer {index} has no experts, and the model's layer {index} has"
                )
            if layer.is_moe and count != layer.num_experts:
                layer.resize(count)


def count_keys(
    config: dict[str, Any], family: MoEFamily, renamed: Mapping[str, str]
) -> list[tuple[dict[str, Any], str]]:
    """Where `config` holds the expert count: transformers renames it in some families when it saves a model.

    `renamed` is the `attribute_map` of the family's config class. A dense family has none.
    """
    if family.num_experts_key is None:
        return []
    *folders, key = family.num_experts_key.split(".")
    for folder in folders:
        config = config[folder]
    return [(config, spelling) for spelling in sorted(_spellings(key, renamed) & config.keys()) or [key]]


def _spellings(key: str, renamed: Mapping[str, str]) -> set[str]:
    return {key, renamed.get(key, key)} | {old for old, new in renamed.items() if new == key}


def told_counts(config: dict[str, Any], family: MoEFamily, renamed: Mapping[str, str]) -> list[ToldCounts]:
    """What config.json says of single layers, key by key; ValueError if it cannot be read, or contradicts itself."""
    if family.num_experts_key is None:
        return []
    lists = {key: config[key] for key in (EXPERTS_PER_LAYER, PER_LAYER_NUM_EXPERTS) if config.get(key) is not None}
    lists |= {key: part[key] for part, key in _lists_for_count(config, family, renamed)}
    told = [_listed(key, numbers) for key, numbers in lists.items()]
    if config.get(PER_LAYER_CONFIG):
        told.append(_overridden(config[PER_LAYER_CONFIG], _spellings(family.num_experts_key, renamed)))
    for one, other in combinations(told, 2):
        for index in one.by_layer.keys() & other.by_layer.keys():
            counts = one.by_layer[index], other.by_layer[index]
            # Of a dense layer one tool says 0, and another as many as the others have.
            if all(counts) and len(set(counts)) > 1:
                raise ValueError(
                    f"{one.key} says that layer {index} has {counts[0]} experts, and {other.key} {counts[1]}; remove "
                    "the one that is not meant"
                )
    return told


def without_counts(config: dict[str, Any], family: MoEFamily, renamed: Mapping[str, str]) -> dict[str, Any]:
    """A copy of config.json that says nothing of single layers: where the count was a list, it is the largest."""
    plain = deepcopy(config)
    for key in (EXPERTS_PER_LAYER, PER_LAYER_NUM_EXPERTS, PER_LAYER_CONFIG):
        plain.pop(key, None)
    for part, key in _lists_for_count(plain, family, renamed):
        part[key] = max((count or 0 for count in part[key]), default=0)
    return plain


def _lists_for_count(
    config: dict[str, Any], family: MoEFamily, renamed: Mapping[str, str]
) -> list[tuple[dict[str, Any], str]]:
    """Where a list stands for the expert count of the whole model."""
    folder, _, _ = (family.num_experts_key or "").rpartition(".")
    if folder and not isinstance(config.get(folder), dict):
        return []  # whoever builds the config says what is wrong with it
    return [(part, key) for part, key in count_keys(config, family, renamed) if isinstance(part.get(key), list)]


def _listed(key: str, numbers: Any) -> ToldCounts:
    """A list with a number for each layer; null, as some tools write of a dense layer, is 0."""
    if not isinstance(numbers, list) or not all(number is None or _is_count(number) for number in numbers):
        raise ValueError(f"{key} must be a list of whole numbers up to {MOST:,}, one for each layer")
    return ToldCounts(key, {index: number or 0 for index, number in enumerate(numbers)}, len(numbers))


def _overridden(layers: Any, spellings: set[str]) -> ToldCounts:
    """The layers that transformers is told about one by one."""
    by_layer: dict[int, int] = {}
    for index, own in layers.items() if isinstance(layers, dict) else [("", None)]:
        if isinstance(own, dict) and (other := sorted(own.keys() - spellings)):
            raise ValueError(
                f"{PER_LAYER_CONFIG} sets {', '.join(other)} of layer {index}, and layers can differ only in how many "
                f"experts they have ({', '.join(sorted(spellings))})"
            )
        if not str(index).isdecimal() or not isinstance(own, dict) or not all(map(_is_count, own.values())):
            raise ValueError(f"{PER_LAYER_CONFIG} must say the expert count of layers by their numbers")
        by_layer |= {int(index): count for count in own.values()}
    return ToldCounts(PER_LAYER_CONFIG, by_layer, None)


def _is_count(number: Any) -> bool:
    return type(number) is int and 0 <= number <= MOST
