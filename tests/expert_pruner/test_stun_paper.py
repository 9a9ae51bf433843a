"""Router distances as they are, the paper's equation to the letter, beside those over the router's norm."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, tensor

from stun_exp.expert_pruner.stun.stun import STUN
from stun_exp.moe.plan import Plan

Planned = Callable[..., Plan]
CONF = Path(__file__).parents[2] / "conf" / "expert_pruner"
ROWS = tensor([1.0, 2.0, 4.0, 7.0])[:, None]


def preset(name: str, **settings: Any) -> STUN:
    config = yaml.safe_load((CONF / f"{name}.yaml").read_text()) | settings
    module, _, class_name = config.pop("_target_").rpartition(".")
    built = getattr(import_module(module), class_name)(**config)
    assert isinstance(built, STUN)
    return built


def kept(name: str, planned: Planned, source: Any, *rows: Tensor) -> list[int]:
    layers = [source(index, rows_ED, ROWS) for index, rows_ED in enumerate(rows)]
    return list(planned(preset(name, ratio=0.25, kappa=0), layers).num_kept.values())


def test_a_layer_with_short_rows_loses_all_in_the_paper_and_its_share_over_the_norm(
    planned: Planned, source: Any
) -> None:
    """Two layers alike but for their scale, of which 2 of 8 experts go.

    As they are, the short rows' distances 0.1 and 0.3 come before any of the long rows'. Over the norm both layers have
    the same distances, and lose one expert each.
    """
    assert kept("stun_paper", planned, source, ROWS, 0.1 * ROWS) == [4, 2]
    assert kept("stun", planned, source, ROWS, 0.1 * ROWS) == [3, 3]


def test_nothing_else_differs() -> None:
    presets = {name: yaml.safe_load((CONF / f"{name}.yaml").read_text()) for name in ("stun", "stun_paper")}
    assert presets["stun"] | {"router_scale": "none"} == presets["stun_paper"]
