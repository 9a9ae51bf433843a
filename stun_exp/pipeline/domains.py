"""Which source of a mixture the experts served, and above all those that went."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any

from stun_exp.moe.plan import LayerPlan
from stun_exp.moe.statistics import DomainUsage

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BatchDomains:
    """The domains of some batches' sequences; without names for text of one source."""

    names: list[str]
    numbers: list[list[int]]
    """Of each sequence of each batch its domain's place among the names."""
    tokens: dict[str, int]


@dataclass(frozen=True)
class LayerDomains:
    """How the unpruned layer's experts were used, in their original numbering."""

    layer: int
    removed: list[int]
    """Those that go, or are merged into another."""
    choices: dict[str, list[int]]
    """Of each domain, how often its tokens chose each expert."""
    gates: dict[str, list[float]]
    """The sum of the gates with which they did."""


@dataclass(frozen=True)
class DomainLoad:
    """What was counted in all layers, on so many tokens of each domain."""

    tokens: dict[str, int]
    layers: list[LayerDomains]


def removed_experts(plan: LayerPlan) -> list[int]:
    """The experts that go, or are merged into another."""
    return [expert for expert in range(plan.num_experts) if expert not in plan.kept]


def domains_of_batches(domains: Sequence[str], batches_BT: "Sequence[Tensor]") -> BatchDomains:
    """The domains of the first batches of a calibration, of whose sequences `domains` are those."""
    names, left, tokens = list(dict.fromkeys(domains)), iter(domains), Counter[str]()
    found = []
    for batch in batches_BT if names else ():
        of_batch = list(islice(left, len(batch)))
        found.append([names.index(name) for name in of_batch])
        for name in of_batch:
            tokens[name] += batch.shape[1]
    return BatchDomains(names, found, dict(tokens))


def layer_domains(plan: LayerPlan, names: Sequence[str], usage: DomainUsage) -> LayerDomains:
    """What was counted in one layer, by the names of domains."""
    counts, gates = usage.count_GE.long().tolist(), usage.gate_GE.tolist()
    own = dict(zip(names, counts, strict=True)), dict(zip(names, gates, strict=True))
    return LayerDomains(plan.layer, removed_experts(plan), *own)


def domains_json(domains: Sequence[str], load: DomainLoad | None) -> dict[str, Any] | None:
    """The block of report.json: what each source gave, and its shares of the removed experts' load over all layers.

    None for text of one source; without shares where nothing was measured.
    """
    if not domains:
        return None
    sequences = Counter(domains)
    tokens = _shares(list(sequences), lambda name: load.tokens.get(name, 0) if load else 0)
    choices = _shares(list(sequences), lambda name: _removed(load, name, "choices"))
    gates = _shares(list(sequences), lambda name: _removed(load, name, "gates"))
    return {
        "sources": {
            name: {
                "sequences": count,
                "tokens": tokens[name],
                "removed_choices": choices[name],
                "removed_gates": gates[name],
            }
            for name, count in sequences.items()
        },
        "per_layer": [asdict(layer) for layer in load.layers] if load else [],
    }


def _removed(load: DomainLoad | None, name: str, what: str) -> float:
    """Of one domain all that it had of the removed experts."""
    layers = load.layers if load else []
    return float(sum(getattr(layer, what)[name][expert] for layer in layers for expert in layer.removed))


def _shares(names: Sequence[str], amount: Callable[[str], float]) -> dict[str, float | None]:
    amounts = {name: amount(name) for name in names}
    total = sum(amounts.values())
    return {name: value / total if 0 < total < inf else None for name, value in amounts.items()}
