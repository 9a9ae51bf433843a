"""What runs gather of a model on a calibration text, kept for each other: no pass is made twice."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor

from stun_exp.calibration.protocol import CalibrationTokens
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.protocol import ExpertPruner
from stun_exp.moe.observe import Statistic
from stun_exp.moe.plan import Plan
from stun_exp.state.cache import Store
from stun_exp.state.code import made_by
from stun_exp.state.device import circumstances

S = TypeVar("S")


def calibrated_on(
    checkpoint: Checkpoint, identity: Mapping[str, str], tokens: CalibrationTokens, nf4: bool, device: torch.device
) -> dict[str, Any]:
    """All that statistics of a model of this `identity` depend on, besides what is gathered, and by which code."""
    return {
        "checkpoint": identity,
        "dtype": str(checkpoint.dtype),
        "nf4": nf4,
        "tokens": tokens.sha256,
        "batches": [list(batch.shape) for batch in tokens.batches_BT],
        **circumstances(device),
    }


@dataclass
class Saved:
    """What gathering cost the run that did it."""

    seconds: float = 0.0
    forward_passes: float = 0.0


class Known:
    """What earlier runs gathered, of the model and the text that `of` names, with all that can move a bit of it."""

    def __init__(self, store: Store, of: Mapping[str, Any]):
        self.store = store
        self.of = of
        self.saved = Saved()

    def take_saved(self) -> Saved:
        """What it would have cost to gather what was taken from here since the last call."""
        saved, self.saved = self.saved, Saved()
        return saved

    def plan(self, pruner: ExpertPruner) -> Plan | None:
        """The plan of an expert pruner with the same settings; None if nobody has made it."""
        found = self.store.find("plans", self._plan_key(pruner))
        if found is None:
            return None
        self.charge(Saved(**found["spent"]))
        return TypeAdapter(Plan).validate_python(found["plan"])

    def keep_plan(self, pruner: ExpertPruner, plan: Plan, spent: Saved) -> None:
        """Keeps a plan, with what it cost besides what was taken from here."""
        spent = Saved(spent.seconds + self.saved.seconds, spent.forward_passes + self.saved.forward_passes)
        self.store.add("plans", self._plan_key(pruner), {"plan": asdict(plan), "spent": asdict(spent)})

    def holds(self, layer: int, statistic: Statistic) -> bool:
        """Whether `restore_` would succeed."""
        return self.store.holds("statistics", self._key(layer, statistic))

    def restore_(self, layer: int, statistic: Statistic) -> Saved | None:
        """Fills an empty statistic of a layer of the whole model; what that saves, None if nobody has gathered it."""
        found = self.store.find("statistics", self._key(layer, statistic))
        if found is None:
            return None
        statistic.restore_(found["state"])
        return Saved(**found["spent"])

    @contextmanager
    def keeping(self, layer: int, statistics: Sequence[Statistic], share: float) -> Iterator[None]:
        """Keeps what is gathered in the block, which makes `share` of a pass over the model."""
        keys = [self._key(layer, statistic) for statistic in statistics]  # of statistics that are empty yet
        start = time.perf_counter()
        yield
        spent = asdict(Saved(time.perf_counter() - start, share))
        for key, statistic in zip(keys, statistics, strict=True):
            self.store.add("statistics", key, {"state": statistic.state(), "spent": spent})

    def charge(self, saved: Saved) -> None:
        """Says that something was taken from here, and what it would have cost."""
        self.saved.seconds += saved.seconds
        self.saved.forward_passes += saved.forward_passes

    def _plan_key(self, pruner: ExpertPruner) -> dict[str, Any]:
        return {**self.of, **made_by("stun_exp.pipeline.experts", type(pruner).__module__), "pruner": _settings(pruner)}

    def _key(self, layer: int, statistic: Statistic) -> dict[str, Any]:
        by = made_by("stun_exp.pipeline.experts", type(statistic).__module__)
        return {**self.of, **by, "layer": layer, "statistic": made_as(statistic)}


class DenseInputs:
    """Input statistics of layers as the expert stage leaves them: they serve every sparsity of the second stage."""

    def __init__(self, known: Known, plan: Plan, settings: Mapping[str, Any]):
        """`settings` are all of the second stage on which it depends what is gathered, and of which matrices."""
        experts = [replace(layer, facts={}) for layer in plan.layers]
        self.known = known
        by = made_by("stun_exp.pipeline.input_statistics", *settings["modules"])
        self.of = {**known.of, **by, "plan": sha256(repr(experts).encode()).hexdigest(), **settings}
        self._gathered: list[dict[str, Any]] = []

    @cached_property
    def complete(self) -> bool:
        """Whether a walk has been through all layers, and what it gathered is there; looked at once."""
        keys = self.known.store.find("walks", self.of)
        return keys is not None and all(self.known.store.holds("inputs", key) for key in keys)

    def find(self, layer: int, feeds: Mapping[str, S]) -> tuple[dict[str, S], list[int]] | None:
        """The empty statistics of some feeds, filled, and each expert's tokens; None if they are not known."""
        key = self._key(layer, feeds)
        found = self.known.store.find("inputs", key)
        if found is None:
            if self.complete:
                raise ValueError("the cache was emptied while it was read; start the run again")
            return None
        for feed, statistic in feeds.items():
            vars(statistic).update(found["state"][feed])
        self._gathered.append(key)
        self.known.charge(Saved(**found["spent"]))
        return dict(feeds), found["tokens"]

    def keep(
        self, layer: int, empty: Mapping[str, Any], full: Mapping[str, Any], tokens: list[int], spent: Saved
    ) -> None:
        """Keeps what was gathered of some feeds of a layer."""
        key = self._key(layer, empty)
        state = {feed: vars(statistic) for feed, statistic in full.items()}
        self.known.store.add("inputs", key, {"state": state, "tokens": tokens, "spent": asdict(spent)})
        self._gathered.append(key)

    def walked(self, layers: Collection[int]) -> None:
        """Told at the end of a walk which layers there is anything to gather of."""
        if {key["layer"] for key in self._gathered} >= set(layers) and not self.complete:
            self.known.store.add("walks", self.of, self._gathered)

    def _key(self, layer: int, feeds: Mapping[str, Any]) -> dict[str, Any]:
        first = next(iter(feeds.values()))
        return {**self.of, "layer": layer, "feeds": sorted(feeds), "statistic": made_as(first)}


def _settings(pruner: ExpertPruner) -> str:
    return f"{type(pruner).__module__}.{type(pruner).__qualname__} {sorted(vars(pruner).items())!r}"


def made_as(statistic: Any) -> dict[str, Any]:
    """What an empty statistic is: its class, and what it was made with."""
    kind = type(statistic)
    values = {name: _plain(value) for name, value in sorted(vars(statistic).items())}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **values}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return list(value.shape)
    return value if isinstance(value, int | float | str | None) else type(value).__name__
