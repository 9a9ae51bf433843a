"""Results that one run computes and others take from the cache, and are charged with."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter

from stun_exp.state.cache import Store
from stun_exp.state.costs import StageCost

T = TypeVar("T")


def computed_once(
    store: Store, what: str, key: Mapping[str, Any], kind: type[T], cost: StageCost, compute: Callable[[], T]
) -> T:
    """A dataclass from the cache, with whose cost the stage is charged; or else computed, and kept there for others.

    Args:
        store: The cache.
        what: The kind of entry.
        key: All that the result depends on.
        kind: The dataclass.
        cost: Of the stage that it is part of; what `compute` is charged with, or passes that it makes, go there.
        compute: Gives the result.
    """
    found = store.find(what, key)
    if found is not None:
        cost.charge(StageCost(**found["cost"]))
        return TypeAdapter(kind).validate_python(found["value"])
    start, before = time.perf_counter(), (cost.charged_seconds, cost.forward_passes)
    value = compute()
    own = {
        "charged_seconds": time.perf_counter() - start + cost.charged_seconds - before[0],
        "forward_passes": cost.forward_passes - before[1],
    }
    assert is_dataclass(value)
    assert not isinstance(value, type)
    store.add(what, key, {"value": asdict(value), "cost": own})
    return value
