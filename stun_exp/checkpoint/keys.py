"""Which key on disk becomes which tensor in memory, or a part of it: the only module that knows key names.

The table is transformers' own (per-expert keys on disk, fused 3-D experts in memory), applied to one layer instead of a
whole model.
"""

import re
from collections.abc import Iterable, Mapping, Set
from copy import deepcopy
from typing import Any, NamedTuple

from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from stun_exp.checkpoint.architecture import Architecture
from stun_exp.moe.layers import MoELayer

_EXPERT = re.compile(r"(?<=experts\.)(expert_)?(\d+)\.")
_TABLES = "rotary_emb.inv_freq"
"""Tables that old checkpoints carry, and that are computed."""


_REMOVE = "remove the one that is not meant, or download the checkpoint again"
_STACKED = ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)])
"""Conversions that put matrices of experts beside one another and change nothing in them."""


class KeySlot(NamedTuple):
    """A place in a fused tensor."""

    target: str
    """The tensor's name in memory."""
    expert: int
    part: int
    """Gate before up, where both are fused."""
    parts: int


class Keys:
    """The keys of a checkpoint, sorted by layer, and what becomes of each."""

    def __init__(self, architecture: Architecture, keys: Iterable[str]):
        self.architecture = architecture
        self.by_layer: list[list[str]] = [[] for _ in architecture.paths]
        self.rest: list[str] = []
        """Outside the layers: embeddings, final norm, head."""
        self.unused: dict[str, list[str]] = {}
        """What the architecture does not run, by the name of the part: layers that predict further tokens."""
        self._targets: dict[str, str] = {}
        self._parts: dict[str, tuple[int, int] | None] = {}
        skeleton = architecture.skeleton
        transforms = getattr(skeleton, "_weight_conversions", None)
        if transforms is None:
            transforms = get_model_conversion_mapping(skeleton)
        self._renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
        self._known = skeleton.state_dict()
        self._sort(keys)

    def _sort(self, keys: Iterable[str]) -> None:
        prefixes = self._prefixes()
        last, layer = " ", self.rest  # keys of one layer follow one another
        for key in keys:
            if key.startswith(last) and not key.endswith(_TABLES):
                layer.append(key)
                continue
            if key.endswith(_TABLES):
                continue
            for prefix, first, size in prefixes:
                if key.startswith(prefix):
                    number = key[len(prefix) :].partition(".")[0]
                    if number.isdecimal() and int(number) < size:
                        last, layer = f"{prefix}{number}.", self.by_layer[first + int(number)]
                        layer.append(key)
                    else:
                        self.unused.setdefault(prefix + number, []).append(key)
                    break
            else:
                if self.target(key) in self._known:
                    self.rest.append(key)
                else:
                    self.unused.setdefault(key.partition(".")[0], []).append(key)

    def _prefixes(self) -> list[tuple[str, int, int]]:
        """How the keys of each stack begin, the number of its first layer, and of how many it has.

        A base model, saved without its head, lacks the first part.
        """
        base = f"{self.architecture.skeleton.base_model_prefix}."
        found, first = [], 0
        for stack, paths in zip(self.architecture.family.stacks, self.architecture.stacks, strict=True):
            found += [(prefix, first, len(paths)) for prefix in (f"{stack}.", f"{stack}.".removeprefix(base))]
            first += len(paths)
        return found

    def target(self, key: str) -> str:
        """The name in memory of the tensor that a key becomes, or becomes part of."""
        # Experts of one matrix, and layers of one kind, differ in a number alone: the table is asked once for all.
        pattern = _EXPERT.sub(r"\g<1>0.", key) if "experts." in key else key
        if pattern not in self._targets:
            base = self.architecture.skeleton.base_model_prefix
            name, _ = rename_source_key(pattern, self._renamings, self._converters, base, self._known)
            self._targets[pattern] = pattern if name not in self._known and pattern in self._known else name
        return self._targets[pattern]

    def named(self, name: str, layer: int) -> list[str]:
        """The keys of the tensor called `name` inside a layer."""
        whole = f"{self.architecture.paths[layer]}.{name}"
        return [key for key in self.by_layer[layer] if self.target(key) == whole]

    def slot(self, key: str) -> "KeySlot | None":
        """Where in a fused tensor the matrix of one expert goes; None for a key that becomes a tensor by itself."""
        pattern = _EXPERT.sub(r"\g<1>0.", key) if "experts." in key else key
        if pattern not in self._parts:
            self._parts[pattern] = self._part(pattern)
        match, part = _EXPERT.search(key), self._parts[pattern]
        return None if match is None or part is None else KeySlot(self.target(key), int(match[2]), *part)

    def _part(self, pattern: str) -> tuple[int, int] | None:
        """Which of the stacked parts of its expert a key is, and of how many; None if it takes more than stacking."""
        _, source = rename_source_key(pattern, self._renamings, self._converters)
        for converter in self._converters:
            if source in converter.source_patterns:
                kinds = [(type(op), op.dim) for op in converter.operations if hasattr(op, "dim")]
                stacks = len(kinds) == len(converter.operations) and kinds in _STACKED
                return (converter.source_patterns.index(source), len(converter.source_patterns)) if stacks else None
        return None

    def expert_of(self, key: str) -> int | None:
        """The expert that a key belongs to, by its name."""
        match = _EXPERT.search(key) if "experts." in key else None
        return int(match[2]) if match else None

    def check(self, source: str) -> None:
        """ValueError if the keys are not those of the architecture: too few or too many experts, or another tensor."""
        alike: dict[tuple[Any, ...], int] = {}
        for index, (layer, path) in enumerate(zip(self.architecture.outlines, self.architecture.paths, strict=True)):
            prefix = _common_prefix(self.by_layer[index], path)
            if other := next((key for key in self.by_layer[index] if not key.startswith(prefix)), None):
                raise ValueError(f"{source}: {other} is beside keys that begin with {prefix}; {_REMOVE}")
            tails = frozenset(key[len(prefix) :] for key in self.by_layer[index])
            expected = frozenset(layer.module.state_dict())
            if alike.setdefault((tails, expected, layer.num_experts), index) == index:
                self._check_layer(source, layer, path, expected)
        self._check_rest(source)
        absent = self._known.keys() - {self.target(key) for key in self.rest}
        layers = tuple(f"{path}." for path in self.architecture.paths)
        tied = set(self.architecture.skeleton.all_tied_weights_keys)
        missing = sorted(name for name in absent - tied if not name.startswith(layers))
        if missing:
            raise ValueError(f"{source}: no weights on disk for {', '.join(missing)}")

    def _check_rest(self, source: str) -> None:
        """ValueError for a tensor outside the layers that two keys stand for, and one inside under a strange name."""
        found: dict[str, str] = {}
        for key in self.rest:
            target = self.target(key)
            if target.startswith(tuple(f"{path}." for path in self.architecture.paths)):
                raise ValueError(f"{source}: {key} stands for {target}, under a name that is none; {_REMOVE}")
            if found.setdefault(target, key) != key and not any(target in c.target_patterns for c in self._converters):
                raise ValueError(f"{source}: {found[target]} and {key} stand for one tensor; {_REMOVE}")

    def _check_layer(self, source: str, layer: MoELayer, path: str, expected: Set[str]) -> None:
        where = f"{source}: layer {layer.index}"
        numbers: dict[str, dict[str, set[int]]] = {}
        for key in self.by_layer[layer.index]:
            name = self.target(key).removeprefix(f"{path}.")
            if name not in expected:
                raise ValueError(f"{where}, {key}: no such tensor in the architecture; config and weights disagree")
            match = _EXPERT.search(key)
            if match:
                form = key[: match.start(2)] + "*" + key[match.end(2) :]
                numbers.setdefault(name, {}).setdefault(form, set()).add(int(match[2]))
        missing = sorted(expected - {self.target(key).removeprefix(f"{path}.") for key in self.by_layer[layer.index]})
        if missing:
            raise ValueError(f"{where}, {missing[0]}: on disk missing; config and weights disagree")
        found = [experts for forms in numbers.values() for experts in forms.values()]
        most = max((max(experts) + 1 for experts in found), default=layer.num_experts)
        for forms in numbers.values():
            for form, experts in forms.items():
                lacking = sorted(set(range(most)) - experts)
                if lacking:
                    raise ValueError(
                        f"{where}: {form.replace('*', str(lacking[0]))} is missing ({len(lacking)} of {most} such "
                        "keys); download the checkpoint again"
                    )
        if most != layer.num_experts:
            key = next((key for _, key in self.architecture.count_keys(self.architecture.raw)), "experts")
            raise ValueError(
                f"{where} has {most} experts on disk, and config.json says {key}={layer.num_experts}; "
                "config and weights disagree"
            )

    def convert(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under the keys on disk -> tensors under their names in memory."""
        by_pattern = {pattern: converter for converter in self._converters for pattern in converter.source_patterns}
        pending: dict[str, WeightRenaming | WeightConverter] = {}
        for key, tensor in sorted(tensors.items(), key=lambda item: _natural(item[0])):
            name = self.target(key)
            _, pattern = rename_source_key(key, self._renamings, self._converters)
            if pattern is None or name == key:
                transform = pending.setdefault(name, WeightRenaming(key, name))
                pattern = key
            else:
                transform = pending.setdefault(name, deepcopy(by_pattern[pattern]))
            transform.add_tensor(name, key, pattern, tensor)
        converted: dict[str, Tensor] = {}
        for name, transform in pending.items():
            results = transform.convert(name, model=self.architecture.skeleton, config=self.architecture.config)
            for target, value in results.items():
                converted[target] = value[0] if isinstance(value, list) else value
        return converted

    def revert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under their names in memory -> tensors under the keys on disk."""
        reverted: dict[str, Tensor] = revert_weight_conversion(self.architecture.skeleton, dict(state))
        return reverted


def _common_prefix(keys: list[str], path: str) -> str:
    """How the keys of one layer begin; the layer may be that of a base model, whose name is shorter."""
    if not keys or keys[0].startswith(f"{path}."):
        return f"{path}."
    return next(f"{tail}." for tail in _tails(path) if keys[0].startswith(f"{tail}."))


def _tails(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(1, len(parts))]


def _natural(key: str) -> list[Any]:
    """Sort key that puts expert 2 before expert 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]
