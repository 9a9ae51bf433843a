"""What published code gave for one tiny Mixtral, and the project's own functions on the same model and tokens."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.softmax_gate import SoftmaxActivity
from stun_exp.moe.inputs import InputStatistics
from stun_exp.moe.layers import Matrix
from stun_exp.moe.observe import Statistic, observe
from stun_exp.moe.skip import GateRatios
from stun_exp.moe.statistics import Coactivation, ExpertActivity
from stun_exp.streaming.walk import Step, Walk

HERE = Path(__file__).parent
CONF = HERE.parents[1] / "conf"
CPU = torch.device("cpu")
_HALVES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_GATE = "mlp.gate"


def _linear_name(layer: int, matrix: str) -> str:
    """What the published code calls a matrix of ours."""
    parts = matrix.split(".")
    if matrix == _GATE:
        matrix = "block_sparse_moe.gate"
    elif parts[0] == "mlp":
        matrix = f"block_sparse_moe.experts.{parts[2]}.{_HALVES[parts[3]]}"
    return f"model.layers.{layer}.{matrix}"


@dataclass
class Seen:
    """A layer's matrices, the router's among them, and what flowed into each on all tokens."""

    step: Step
    matrices: list[Matrix]
    statistics: dict[str, Any]
    """By feed; empty if there was nothing to gather."""

    def of(self, matrix: Matrix) -> Any:
        return self.statistics.get(matrix.feed)

    def name(self, matrix: Matrix) -> str:
        return _linear_name(self.step.layer.index, matrix.name)


@dataclass
class RouterAndExperts:
    """A layer of experts (an `ExpertSource`) that may be left with one expert, as in the published code."""

    index: int
    rows_ED: Tensor
    weights_EP: Tensor
    num_groups: int = 1
    top_k: int = 1
    min_experts: int = 1
    renormalises: bool = True

    @property
    def num_experts(self) -> int:
        return len(self.rows_ED)

    def router_rows_ED(self) -> Tensor:
        return self.rows_ED

    def expert_weights(self, experts: Sequence[int]) -> Iterator[Tensor]:
        yield self.weights_EP[list(experts)]


@pytest.fixture(scope="session")
def linear_name() -> Callable[[int, str], str]:
    """(layer, name of a matrix of ours) -> what the published code calls it."""
    return _linear_name


@pytest.fixture(scope="session")
def published() -> Checkpoint:
    return Checkpoint(HERE / "mixtral", None)


@pytest.fixture(scope="session")
def tokens_BT() -> Tensor:
    return torch.tensor(json.loads((HERE / "tokens.json").read_text()))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """Name -> the content of NAME.json."""
    return lambda name: json.loads((HERE / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def arrays() -> Callable[[str], dict[str, np.ndarray]]:
    """Name -> the content of NAME.npz."""
    return lambda name: dict(np.load(HERE / f"{name}.npz"))


@pytest.fixture(scope="session")
def masks(arrays: Callable[[str], dict[str, np.ndarray]]) -> Callable[[str], dict[str, Tensor]]:
    """Variant -> published name of each linear -> where its weights are zero."""
    packed = arrays("masks")

    def unpacked(variant: str) -> dict[str, Tensor]:
        shapes = [tuple(map(int, shape)) for shape in packed["shapes"]]
        bits = torch.from_numpy(np.unpackbits(packed[variant]).astype(bool))
        sizes = [rows * columns for rows, columns in shapes]
        pieces = bits[: sum(sizes)].split(sizes)
        return {str(n): p.view(s) for n, p, s in zip(packed["names"], pieces, shapes, strict=True)}

    return unpacked


@pytest.fixture(scope="session")
def configured() -> Callable[..., Any]:
    """(class, name of a YAML in conf/, settings) -> the component."""

    def build(kind: Any, name: str, **settings: Any) -> Any:
        config = yaml.safe_load((CONF / f"{name}.yaml").read_text()) | settings
        del config["_target_"]
        return kind(**config)

    return build


@pytest.fixture(scope="session")
def walked(published: Checkpoint, tokens_BT: Tensor) -> Callable[[Callable[[int], Any]], Iterator[Seen]]:
    """(maker of statistics) -> each layer as it is reached, sequence by sequence, with what flowed into its matrices.

    The published code prunes the router like any other linear, and its later layers see that: the caller may change all
    matrices, and the next layer is run behind what they have become.
    """

    def walk(make: Callable[[int], Any]) -> Iterator[Seen]:
        for step in Walk(published, list(tokens_BT.split(1)), CPU, "golden"):
            gate = Matrix(_GATE, step.layer.router.weight.detach(), _GATE, "mlp")
            matrices = [*step.layer.matrices(), gate]
            inputs = InputStatistics(step.layer, matrices, make)
            hook = step.layer.router.register_forward_pre_hook(
                lambda module, args, inputs=inputs: inputs.linear(_GATE, args[0].flatten(0, -2))
            )
            with observe(step.layer, [inputs]):
                step.forward()
            hook.remove()
            yield Seen(step, matrices, inputs.by_feed)
            step.changed()

    return walk


@pytest.fixture(scope="session")
def router_rows(published: Checkpoint, arrays: Callable[[str], dict[str, np.ndarray]]) -> list[Tensor]:
    """Those of all four layers of the model that the published code saw; the last is here as a router alone."""
    rows = [published.read_router_rows(index) for index in range(published.num_layers)]
    return [*rows, torch.from_numpy(arrays("router")["layer3"])]


@pytest.fixture(scope="session")
def layers(published: Checkpoint, router_rows: list[Tensor]) -> list[RouterAndExperts]:
    """All four; the experts of the last are nothing but zeros."""
    found = []
    for index, rows_ED in enumerate(router_rows):
        weights_EP = torch.zeros(len(rows_ED), 1)
        if index < published.num_layers:
            weights_EP = torch.cat(list(published.read_layer(index).expert_weights(range(len(rows_ED)))), 1)
        found.append(RouterAndExperts(index, rows_ED, weights_EP))
    return found


@pytest.fixture(scope="session")
def layer_of() -> type[RouterAndExperts]:
    return RouterAndExperts


@pytest.fixture(scope="session")
def activity(published: Checkpoint, tokens_BT: Tensor) -> list[dict[type[Statistic], Any]]:
    """What is gathered of each layer of the dense model, by kind."""
    found = []
    for step in Walk(published, list(tokens_BT.split(1)), CPU, "golden"):
        gathered = [Coactivation(8), ExpertActivity(8), SoftmaxActivity(8), GateRatios()]
        with observe(step.layer, gathered):
            step.forward()
        found.append({type(one): one for one in gathered})
    return found


@pytest.fixture
def run_published(
    run_with: Callable[..., dict[str, Any]], tokens_BT: Tensor, tmp_path: Path
) -> Callable[..., tuple[dict[str, Any], Checkpoint]]:
    """Prunes half of the model's weights by Wanda, with overrides, in a run; its report, and what it wrote."""
    text = tmp_path / "tokens.jsonl"
    # One document: an end of text after each sequence would shift the next.
    text.write_text(json.dumps({"input_ids": tokens_BT.flatten().tolist()}))

    def go(*overrides: str) -> tuple[dict[str, Any], Checkpoint]:
        out = tmp_path / "-".join(["run", *overrides])
        calibration = ["calibration=local", f"calibration.path={text}", "calibration.sequence_length=64"]
        pruning = ["method=wanda", "sparsity=0.5", "save=true"]
        report = run_with(
            out, f"model.path={HERE / 'mixtral'}", *calibration, "calibration.num_sequences=16", *pruning, *overrides
        )
        return report, Checkpoint(out / "checkpoint", None)

    return go
