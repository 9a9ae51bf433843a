"""A small conf tree that has one of everything, and components to go with it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stun_exp.cli import check
from stun_exp.config import ConfigError

PARTS = """
from typing import ClassVar, Literal
from pydantic import Field, field_validator, model_validator
from stun_exp.component import Component
from stun_exp.config import kinds
from stun_exp.kinds import members

class Part(Component):
    pass

# What every place needs, so that the tests can put any part anywhere.
for kind in kinds().values():
    for name in members(kind) - {"path", "layers"}:
        setattr(Part, name, getattr(kind, name, None))
Part.prunes = True

class Model(Part):
    path: str

class Off(Part):
    prunes: ClassVar[bool] = False

class Lone(Component):
    shots: int

class Cut(Part):
    ratio: float = Field(ge=0, lt=1)
    method: Literal["mean", "first"]
    layers: tuple[int, ...]
    top: int | Literal["auto"]

    @field_validator("layers")
    @classmethod
    def _some(cls, layers):
        if not layers:
            raise ValueError("no layer to cut; name one")
        return layers

class Weights(Part):
    first: int
    last: int

    @model_validator(mode="after")
    def _ordered(self):
        if self.first > self.last:
            raise ValueError(f"first={self.first} is after last={self.last}; swap them")
        return self

class Seeded(Part):
    seed: int = Field(ge=0)
    top: int | Literal["auto"]

class Task(Part):
    shots: int

class Eval(Part):
    benchmarks: dict[str, Task]
    limits: dict[str, int]
"""

CAN_BE_OFF = [
    "calibration",
    "expert_pruner",
    "allocation",
    "unstructured_pruner",
    "recovery",
    "skipping",
    "export",
    "stream",
    "tracker",
    "cache",
]

FILES = {
    "config": """
        defaults:
        - {model: folder}
        - {calibration: none}
        - {expert_pruner: cut}
        - {allocation: none}
        - {unstructured_pruner: weights}
        - {recovery: none}
        - {skipping: none}
        - {eval: one}
        - {export: none}
        - {stream: none}
        - {tracker: none}
        - {cache: none}
        - _self_
        - {method: null}
        - {experiment: null}
        sparsity: 0.4
        sparsity_scope: experts
        seed: 0
        name: "${hydra:job.name}"
        save: false
        dry_run: false
        resume: continue
        hydra:
          job: {name: stun, config: {override_dirname: {exclude_keys: [dry_run, resume]}}}
          callbacks: {end: {_target_: stun_exp.report.sweep.SweepEnd}}
          run: {dir: out}
          sweep:
            dir: out
            subdir: ${folder_name:${hydra.overrides.task},${hydra.job.config.override_dirname.exclude_keys}}
        """,
    "model/folder": "{_target_: parts.Model, path: '???'}",
    "expert_pruner/cut": "{_target_: parts.Cut, ratio: 0.25, method: mean, layers: [1], top: auto}",
    "unstructured_pruner/weights": "{_target_: parts.Weights, first: 1, last: 2}",
    "eval/one": """
        defaults:
        - /benchmark@benchmarks.a: a
        _target_: parts.Eval
        limits: {}
        """,
    "calibration/seeded": "{_target_: parts.Seeded, seed: '${seed}', top: '${expert_pruner.top}'}",
    "benchmark/a": "{_target_: parts.Task, shots: 1}",
    "experiment/demo/uncut": "{defaults: [{override /expert_pruner: none}]}",
    "experiment/demo/dense": "{defaults: [{override /expert_pruner: none}], sparsity: 0.1}",
    "experiment/grid": "{seed: 7, hydra: {sweep: {dir: grid}, sweeper: {params: {sparsity: '0.3,0.4'}}}}",
    "experiment/globbed": "{hydra: {sweeper: {params: {expert_pruner: glob(*)}}}}",
    "experiment/swapped": "{defaults: [{override /method: weights}, {override /expert_pruner: cut}], seed: 7}",
    "experiment/wrong": "{hydra: {sweeper: {params: {sparsity: '0.3,2', expert_pruner: 'cut,nne'}}}}",
    "method/weights": "{defaults: [{override /expert_pruner: none}], name: weights alone}",
} | {f"{group}/none": "_target_: parts.Off" for group in CAN_BE_OFF}


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `conf/` and the module `parts` of its components."""
    root = tmp_path_factory.mktemp("tree")
    (root / "parts.py").write_text(PARTS)
    for name, text in FILES.items():
        file = root / "conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        head = "# @package _global_\n" if name.startswith(("experiment", "method")) else ""
        file.write_text(head + "\n".join(line.removeprefix(8 * " ") for line in text.splitlines()))
    return root


@pytest.fixture
def conf(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small conf tree, its components importable."""
    monkeypatch.syspath_prepend(tree)
    return tree / "conf"


@pytest.fixture
def mistakes(conf: Path) -> Callable[..., list[str]]:
    """What is said about a command line that is right but for the given arguments."""

    def call(*argv: str) -> list[str]:
        with pytest.raises(ConfigError) as error:
            check([*argv, "model.path=x"], conf)
        return list(error.value.mistakes)

    return call
