"""What `stun inspect` prints."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from stun_exp.config.settings import Settings
from stun_exp.inspection.needs import DISK_RATE, Needs, needs_of
from stun_exp.inspection.sizes import Inspection, LayerSize, inspect_architecture
from stun_exp.pipeline.budget import Scope
from stun_exp.state.device import machine

FactRow = tuple[str, str]


@dataclass(frozen=True)
class ModelFacts:
    """What a model is and what a run of it will need; as text, what `stun inspect` prints."""

    source: str
    sizes: Inspection
    needs: Needs
    scope: Scope
    memories: Mapping[str, int]
    """Bytes of this machine's memories, by name."""

    def __str__(self) -> str:
        rows = [
            ("model", f"{self.source}: {self.sizes.whole.parameters:,} parameters"),
            *_model(self.sizes),
            *_scopes(self.sizes, self.scope),
            ("this machine", ", ".join(f"{gb(size)} {name}" for name, size in self.memories.items())),
            *_sizes(self.sizes, self.memories),
            *_needs(self.needs, self.memories),
        ]
        return "\n".join([*(f"{name:<18}{text}" for name, text in rows), "no weights were read"])


def facts_of(settings: Settings) -> ModelFacts:
    """What the model of a run's settings is, what fits where, and what the run will need; reads no weights."""
    found = inspect_architecture(settings.model.architecture())
    return ModelFacts(settings.model.path, found, needs_of(found, settings), settings.sparsity_scope, machine())


def _model(found: Inspection) -> Iterator[FactRow]:
    moe = found.moe
    yield "family", found.architecture.family.model_type
    yield "layers", f"{len(found.layers)}, {len(moe)} with experts and {len(found.layers) - len(moe)} dense"
    if moe:
        yield from _experts(moe)
    for part, tensors in found.unused.items():
        yield "not run", f"{part}, {tensors} tensors: not part of the architecture, copied unpruned"
    unknown = "the index does not say" if found.architecture.at_hand else "not at hand; these are its card's dimensions"
    yield "on disk", unknown if found.disk_bytes is None else gb(found.disk_bytes)


def _experts(moe: Sequence[LayerSize]) -> Iterator[FactRow]:
    experts, chosen, groups = (
        _range(numbers)
        for numbers in zip(*((layer.num_experts, layer.top_k, layer.num_groups) for layer in moe), strict=True)
    )
    yield "experts", f"{experts} a layer, {chosen} a token" + ("" if groups == "1" else f", in {groups} groups")
    beside = [layer.weights["mlp"] for layer in moe]
    if any(beside):
        text = "weights a layer that every token meets (shared experts, parallel feed-forward)"
        yield "beside them", f"{_range(beside)} {text}"


def _scopes(found: Inspection, of_run: Scope) -> Iterator[FactRow]:
    whole = found.whole.parameters
    for scope in get_args(Scope):
        inside = found.in_scope(scope)
        chosen = "; sparsity_scope of this run" if scope == of_run else ""
        yield f"scope {scope}", f"{inside:,} in ({inside / whole:.1%}), {whole - inside:,} out{chosen}"


def _sizes(found: Inspection, memories: Mapping[str, int]) -> Iterator[FactRow]:
    largest = found.largest
    parts = {"whole model": found.whole, "largest layer": largest.all}
    if found.moe:
        parts["its experts"] = largest.experts
    for name, size in parts.items():
        yield name, f"bf16 {_fits(size.bytes('full'), memories)}, nf4 {_fits(size.bytes('nf4'), memories)}"


def _fits(taken: float, memories: Mapping[str, int]) -> str:
    where = [name for name, room in memories.items() if taken <= room]
    return f"{gb(taken)} (fits {' and '.join(where) or 'nowhere'})"


def _needs(needs: Needs, memories: Mapping[str, int]) -> Iterator[FactRow]:
    moves = sum(stage.moves for stage in needs.stages.values())
    passes = sum(stage.passes for stage in needs.stages.values())
    yield (
        "run, memory",
        f"to prune {_fits(needs.pruning_bytes, memories)}: layers at work {gb(needs.layer_bytes)}, hidden states of "
        f"{needs.num_tokens:,} tokens {gb(needs.hidden_bytes)}; to evaluate {_fits(needs.evaluation_bytes, memories)}",
    )
    yield "run, disk", f"up to {gb(needs.written_bytes)} for the written checkpoint"
    yield (
        "run, time",
        f"about {_duration(needs.seconds)}: {_duration(needs.disk_seconds)} to read or write the model {moves} times, "
        f"assumed {DISK_RATE / 1e9:g} GB/s, and {_duration(needs.compute_seconds)} for {passes:.3g} passes over the "
        f"tokens, assumed {needs.compute_rate / 1e12:g} TFLOP/s; evaluation and recovery are not in it",
    )


def gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.1f} s"


def _range(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
