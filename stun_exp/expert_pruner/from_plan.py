"""Replay the plan of another run: what it decided is done again, without deciding."""

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, TypeAdapter, ValidationError, field_validator

from stun_exp.expert_pruner.protocol import ExpertPruner
from stun_exp.moe.plan import LayerPlan, Plan, router_digest
from stun_exp.utils.paths import expanded, is_file, is_folder

if TYPE_CHECKING:
    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.observe import Statistic

RecordedPlans = dict[int, tuple[LayerPlan, str]]
"""Layer -> its plan, and the digest of the router that it was made for."""


class FromPlan(ExpertPruner):
    """Does what a plan.json says, for the model that it was made for; needs no data."""

    path: str
    """A run's plan.json, or its folder."""

    @field_validator("path")
    @classmethod
    def _is_a_plan(cls, path: str) -> str:
        """`path`, which can be read."""
        read_plan(path)
        return path

    @cached_property
    def recorded(self) -> RecordedPlans:
        return read_plan(self.path)

    def removed_share(self) -> float:
        """The share of the routed experts that the plan removes, merged ones included."""
        plans = [plan for plan, _ in self.recorded.values()]
        return sum(plan.num_experts - len(plan.groups) for plan in plans) / sum(plan.num_experts for plan in plans)

    def reads(self) -> list[Path]:
        return [plan_file(self.path)]

    def statistics(self, layer: "ExpertSource") -> "list[Statistic]":
        return []

    def examine(self, layer: "ExpertSource", statistics: "list[Statistic]", num_kept: int) -> LayerPlan:
        if layer.index not in self.recorded:
            raise self._another_model(f"it says nothing of layer {layer.index}, which has {layer.num_experts} experts")
        plan, router = self.recorded[layer.index]
        if plan.num_experts != layer.num_experts:
            raise self._another_model(
                f"layer {layer.index} has {plan.num_experts} experts there and {layer.num_experts} here"
            )
        if (digest := router_digest(layer.router_rows_ED())) != router:
            raise self._another_model(f"layer {layer.index}'s router has digest {router} there and {digest} here")
        return plan

    def plan(self, findings: list[LayerPlan]) -> Plan:
        if surplus := sorted(self.recorded.keys() - {plan.layer for plan in findings}):
            raise self._another_model(f"it plans layer {', '.join(map(str, surplus))}, where this one has no experts")
        return Plan(findings)

    def _another_model(self, difference: str) -> ValueError:
        return ValueError(
            f"expert_pruner.path={self.path}: the plan was made for another model: {difference}; "
            "give a plan of this model, or the model of the plan"
        )


def plan_file(path: str) -> Path:
    """Where the plan is that is given as a file or by its folder."""
    place = expanded(path)
    return place / "plan.json" if is_folder(place) else place


def read_plan(path: str) -> RecordedPlans:
    """The content of a plan.json, given as a file or by its folder; ValueError if it is missing or damaged."""
    file = plan_file(path)
    if not is_file(file):
        raise ValueError("no such file" if file == expanded(path) else "no plan.json in this folder")
    try:
        layers = json.loads(file.read_text())["layers"]
        _check_numbers(layers)
        recorded = {entry["layer"]: (_layer_plan(entry), str(entry["router"])) for entry in layers}
        if not 0 < len(recorded) == len(layers):
            raise ValueError("no layer, or one of them twice")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in ("layers", *first["loc"]))
        raise _no_plan(f"{where}: {first['msg']}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise _no_plan(f"{error!r:.200}") from error
    return recorded


def _no_plan(why: str) -> ValueError:
    return ValueError(f"cannot be read as a plan ({why}); give a plan.json as a run writes it")


def _check_numbers(layers: object) -> None:
    """ValueError unless all numbers of layers and experts are whole ones: true and false are integers to Python."""
    TypeAdapter(list[_Entry]).validate_python(layers, strict=True)


class _Entry(BaseModel):
    """What plan.json says of one layer, as far as it is done again."""

    layer: int
    num_experts: int
    groups: list[list[int]]
    kept: list[int]
    weights: list[list[float]] | None = None
    aligned: bool = False
    clusters: list[list[int]] | None = None
    router: str


def _layer_plan(entry: dict[str, object]) -> LayerPlan:
    fields = {name: value for name, value in entry.items() if name != "router"}
    plan = LayerPlan(**fields)  # type: ignore[arg-type]
    if plan.ranking is not None:
        assert sorted(plan.ranking.experts) == list(range(plan.num_experts)), "facts.ranking is none of all experts"
    return plan
