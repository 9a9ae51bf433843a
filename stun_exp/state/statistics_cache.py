"""What runs gather of a model on a calibration text, kept for each other: no pass is made twice."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from hashlib import sha256
from typing import Any, TypeVar

from torch import Tensor

from stun_exp.moe.observe import Statistic
from stun_exp.moe.plan import Plan
from stun_exp.state.cache import Store
from stun_exp.state.costs import StageCost
from stun_exp.state.fingerprint import made_by

S = TypeVar("S")


class StatisticsCache:
    """What earlier runs gathered, of the model and the text that `of` names, with all that can move a bit of it."""

    def __init__(
        self, store: Store, of: Mapping[str, Any], charge: Callable[[StageCost], None] = lambda cost: None
    ) -> None:
        """`charge` is told what it once cost to gather what is taken from here."""
        self.store = store
        self.of = of
        self.charge = charge

    def holds(self, layer: int, statistic: Statistic) -> bool:
        """Whether `restore_` would succeed."""
        return self.store.holds("statistics", self._key(layer, statistic))

    def restore_(self, layer: int, statistic: Statistic) -> StageCost | None:
        """Fills an empty statistic of a layer of the whole model; what that saves, None if nobody has gathered it."""
        found = self.store.find("statistics", self._key(layer, statistic))
        if found is None:
            return None
        statistic.restore_(found["state"])
        return StageCost(**found["cost"])

    @contextmanager
    def keeping(self, layer: int, statistics: Sequence[Statistic], share: float) -> Iterator[None]:
        """Keeps what is gathered in the block, which makes `share` of a pass over the model."""
        keys = [self._key(layer, statistic) for statistic in statistics]  # of statistics that are empty yet
        start = time.perf_counter()
        yield
        cost = {"charged_seconds": time.perf_counter() - start, "forward_passes": share}
        for key, statistic in zip(keys, statistics, strict=True):
            self.store.add("statistics", key, {"state": statistic.state(), "cost": cost})

    def _key(self, layer: int, statistic: Statistic) -> dict[str, Any]:
        by = made_by("stun_exp.pipeline.experts", type(statistic).__module__)
        return {**self.of, **by, "layer": layer, "statistic": made_as(statistic)}


class DenseInputs:
    """Input statistics of layers as the expert stage leaves them: they serve every sparsity of the second stage."""

    def __init__(self, cached: StatisticsCache, plan: Plan, settings: Mapping[str, Any]):
        """`settings` are all of the second stage on which it depends what is gathered, and of which matrices."""
        experts = [replace(layer, facts={}, clusters=None) for layer in plan.layers]
        self.cached = cached
        by = made_by("stun_exp.pipeline.input_statistics", *settings["modules"])
        self.of = {**cached.of, **by, "plan": sha256(repr(experts).encode()).hexdigest(), **settings}
        self._gathered: list[dict[str, Any]] = []

    @cached_property
    def complete(self) -> bool:
        """Whether a walk has been through all layers, and what it gathered is there; looked at once."""
        keys = self.cached.store.find("walks", self.of)
        return keys is not None and all(self.cached.store.holds("inputs", key) for key in keys)

    def find(self, layer: int, feeds: Mapping[str, S]) -> tuple[dict[str, S], list[int]] | None:
        """The empty statistics of some feeds, filled, and each expert's tokens; None if they are not known."""
        key = self._key(layer, feeds)
        found = self.cached.store.find("inputs", key)
        if found is None:
            if self.complete:
                raise ValueError("the cache was emptied while it was read; start the run again")
            return None
        for feed, statistic in feeds.items():
            vars(statistic).update(found["state"][feed])
        self._gathered.append(key)
        self.cached.charge(StageCost(**found["cost"]))
        return dict(feeds), found["tokens"]

    def keep(
        self, layer: int, empty: Mapping[str, Any], full: Mapping[str, Any], tokens: list[int], cost: StageCost
    ) -> None:
        """Keeps what was gathered of some feeds of a layer."""
        key = self._key(layer, empty)
        state = {feed: vars(statistic) for feed, statistic in full.items()}
        self.cached.store.add("inputs", key, {"state": state, "tokens": tokens, "cost": asdict(cost)})
        self._gathered.append(key)

    def walked(self, layers: Collection[int]) -> None:
        """Told at the end of a walk which layers there is anything to gather of."""
        if {key["layer"] for key in self._gathered} >= set(layers) and not self.complete:
            self.cached.store.add("walks", self.of, self._gathered)

    def _key(self, layer: int, feeds: Mapping[str, Any]) -> dict[str, Any]:
        first = next(iter(feeds.values()))
        return {**self.of, "layer": layer, "feeds": sorted(feeds), "statistic": made_as(first)}


def made_as(statistic: Any) -> dict[str, Any]:
    """What an empty statistic is: its class, and what it was made with."""
    kind = type(statistic)
    values = {name: _plain(value) for name, value in sorted(vars(statistic).items())}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **values}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return list(value.shape)
    return value if isinstance(value, int | float | str | None) else type(value).__name__
