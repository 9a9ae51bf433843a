"""A written plan is done again as it stands, for its own model and no other."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.config.build import ConfigError, build
from stun_exp.expert_pruner.frequency import Frequency
from stun_exp.expert_pruner.from_plan import FromPlan
from stun_exp.expert_pruner.hc_smoe import HCSMoE
from stun_exp.expert_pruner.m_smoe import MSMoE
from stun_exp.expert_pruner.protocol import ExpertPruner
from stun_exp.moe.plan import LayerPlan, Plan, keep, plan_json, router_digest

Planned = Callable[..., Plan]
Passes = Callable[..., tuple[Plan, float]]
ROWS = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))


def write(folder: Path, plan: Plan, routers: dict[int, str] | None = None) -> Path:
    routers = routers or {layer.layer: router_digest(ROWS) for layer in plan.layers}
    file = folder / "plan.json"
    file.write_text(json.dumps(plan_json(plan, routers)))
    return file


@pytest.mark.parametrize(
    "pruner",
    [
        Frequency(ratio=0.5),
        HCSMoE(ratio=0.5, linkage="average", distance="cosine"),
        MSMoE(ratio=0.5, align=True),
    ],
    ids=["scores", "weighted", "aligned, unequal layers"],
)
def test_a_replayed_plan_is_the_plan(
    pruner: ExpertPruner, checkpoint: Checkpoint, tokens_BT: Tensor, tmp_path: Path, plan_and_passes: Passes
) -> None:
    """Groups, survivors, shares, alignment and facts, without a forward pass."""
    plan, _ = plan_and_passes(checkpoint, pruner, [tokens_BT])
    write(tmp_path, plan, {x.layer: router_digest(checkpoint.read_router_rows(x.layer)) for x in plan.layers})
    replay = FromPlan(path=str(tmp_path))
    again, passes = plan_and_passes(checkpoint, replay, [tokens_BT])
    assert again.layers == plan.layers
    assert passes == 0
    assert replay.removed_share() == pytest.approx(1 - sum(len(x.kept) for x in plan.layers) / (6 * len(plan.layers)))


def test_ratio_is_the_share_removed_to_the_last_digit(tmp_path: Path) -> None:
    """1 - 8 / 10 is 0.19999999999999996, and `sparsity=0.2` would not equal it. Merged experts are removed ones."""
    plan = Plan([LayerPlan(0, 5, [[0, 1], [2], [3], [4]], [0, 2, 3, 4]), keep(1, 5, [0, 1, 2, 3])])
    assert FromPlan(path=str(write(tmp_path, plan))).removed_share() == 0.2


def test_file_and_folder_are_the_same(tmp_path: Path) -> None:
    file = write(tmp_path, Plan([keep(3, 4, [1, 2])]))
    assert FromPlan(path=str(file)).recorded == FromPlan(path=str(tmp_path)).recorded


def test_it_survives_the_way_to_another_process(tmp_path: Path) -> None:
    """Launchers send components, also after something has asked for the ratio."""
    replay = FromPlan(path=str(write(tmp_path, Plan([keep(3, 4, [1, 2])]))))
    assert replay.removed_share() == 0.5
    assert pickle.loads(pickle.dumps(replay)).removed_share() == 0.5


def test_layers_far_from_even_are_replayed(planned: Planned, source: Any, tmp_path: Path) -> None:
    """One layer loses none, the other all but its top-2."""
    plan = Plan([keep(0, 4, [0, 1, 2, 3]), keep(1, 4, [1, 3])])
    layers = [source(i, ROWS, top_k=2) for i in range(2)]
    assert planned(FromPlan(path=str(write(tmp_path, plan))), layers).layers == plan.layers


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (Plan([keep(0, 4, [0, 1])]), r"says nothing of layer 1, which has 4 experts"),
        (Plan([keep(0, 4, [0, 1]), keep(1, 6, [0, 1])]), r"layer 1 has 6 experts there and 4 here"),
        (Plan([keep(i, 4, [0, 1]) for i in range(4)]), r"it plans layer 2, 3, where this one has no experts"),
    ],
    ids=["a layer missing", "another number of experts", "layers too many"],
)
def test_a_plan_of_another_shape_is_refused(
    plan: Plan, says: str, planned: Planned, source: Any, tmp_path: Path
) -> None:
    replay = FromPlan(path=str(write(tmp_path, plan)))
    with pytest.raises(ValueError, match=rf"expert_pruner.path=.*another model: .*{says}; give a plan of this model"):
        planned(replay, [source(i, ROWS) for i in range(2)])


def test_a_plan_for_another_router_is_refused(planned: Planned, source: Any, tmp_path: Path) -> None:
    """As many layers and experts, so only the digest tells: the experts' numbers would mean others."""
    replay = FromPlan(path=str(write(tmp_path, Plan([keep(7, 4, [0, 1])]))))
    assert planned(replay, [source(7, ROWS.bfloat16().float())]).layers == [keep(7, 4, [0, 1])]
    here, there = router_digest(ROWS.flip(0)), router_digest(ROWS)
    with pytest.raises(ValueError, match=rf"layer 7's router has digest {there} there and {here} here"):
        planned(replay, [source(7, ROWS.flip(0))])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"layers": []}', "ValueError.*no layer"),
        ('{"layers": [{"layer": 0, "num_experts": 2, "groups": [[0]], "kept": [0]}]}', r"layers\.0\.router: "),
        ('{"layers": [{"layer": 0, "num_experts": 2, "groups": [[5]], "kept": [5], "router": "x"}]}', "AssertionError"),
        (
            '{"layers": [{"layer": 0, "num_experts": 2, "groups": "x", "kept": [0], "router": "x"}]}',
            r"layers.0.groups: ",
        ),
        (
            '{"layers": [{"layer": 0, "num_experts": 2, "groups": [[0]], "kept": [0], "clusters": 3, "router": "x"}]}',
            r"layers.0.clusters: ",
        ),
        (
            '{"layers": [{"layer": 0, "num_experts": 2, "groups": [[0]], "kept": [0], "router": "x", '
            '"facts": {"ranking": {"experts": [0, 0], "fewest": 1}}}]}',
            r"AssertionError",
        ),
        ('{"layers": [{"layer": 0, "mode": 1, "router": "x"}]}', r"layers\.0\.num_experts: "),
    ],
    ids=[
        "no JSON",
        "a list",
        "no layer",
        "no digest",
        "no expert",
        "text for a list",
        "no clusters",
        "no ranking",
        "no such field",
    ],
)
def test_a_damaged_plan_is_a_mistake_of_the_config(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(ValidationError, match=rf"cannot be read as a plan \({says}.*give a plan.json as a run writes"):
        FromPlan(path=str(tmp_path))


def test_two_plans_for_one_layer_are_refused(tmp_path: Path) -> None:
    """The second would silently replace the first."""
    file = write(tmp_path, Plan([keep(0, 4, [0, 1]), keep(0, 4, [2, 3])]))
    with pytest.raises(ValidationError, match="cannot be read as a plan"):
        FromPlan(path=str(file))


@pytest.mark.parametrize(("name", "says"), [("none.json", "no such file"), ("", "no plan.json in this folder")])
def test_a_missing_plan_is_told_with_the_setting(name: str, says: str, tmp_path: Path) -> None:
    """Before anything is loaded, in the words of every other mistake."""
    from omegaconf import OmegaConf

    path = str(tmp_path / name) if name else str(tmp_path)
    target = "stun_exp.expert_pruner.from_plan.FromPlan"
    with pytest.raises(ConfigError) as caught:
        build(OmegaConf.create({"expert_pruner": {"_target_": target, "path": path}}))
    assert [m for m in caught.value.mistakes if m.startswith("expert_pruner")] == [f"expert_pruner.path={path}: {says}"]
