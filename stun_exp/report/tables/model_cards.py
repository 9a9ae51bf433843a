"""Whether a run's model is the one of its card in conf/model: a name alone says nothing."""

from collections.abc import Iterator, Mapping
from functools import cache
from math import isclose
from typing import Any

import yaml

from stun_exp.config.conf import CONF
from stun_exp.report.data.run_settings import RunReport

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""What families call the number of experts of a layer in config.json."""


@cache
def card(name: str) -> Mapping[str, Any]:
    """A model card as it is shipped."""
    found: Mapping[str, Any] = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
    return found


def departures(name: str, report: RunReport) -> Iterator[str]:
    """Where a run's model is not what its card says: parameters and experts as they were counted, and settings."""
    published, counted = card(name), report["model"]["params_before"]
    if counted != published["parameters"]:
        yield f"the model has {counted:,} parameters and not the {published['parameters']:,} of {name}"
    dimensions, before = published["dimensions"], report["experts"]["before"]
    experts = next((dimensions[key] for key in EXPERTS if key in dimensions), None)
    if experts is not None and (set(before) != {experts} or len(before) > dimensions["num_hidden_layers"]):
        told, layers = ", ".join(map(str, sorted(set(before)))), dimensions["num_hidden_layers"]
        yield f"{len(before)} layers of {told} experts and not the {layers} of {experts} of {name}"
    settings = report["settings"].get("model", {})
    if "dimensions" in settings and settings["dimensions"] != dimensions:
        yield f"model.dimensions are not those of {name}"


def other_expert_ratio(name: str, report: RunReport) -> Iterator[str]:
    """Where other experts were to go than the model's card says."""
    ratio, published = report["settings"]["expert_pruner"].get("ratio"), card(name)["expert_ratio"]
    if ratio is not None and not isclose(ratio, published):
        yield f"expert_pruner.ratio={ratio:g} and not the {published:g} of {name}"
