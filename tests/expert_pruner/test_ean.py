"""Expert activation norm: summed it grows with use, as a mean it does not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from stun_exp.expert_pruner.ean import EAN
from stun_exp.moe.plan import Plan
from stun_exp.moe.statistics import ExpertActivity


@pytest.mark.parametrize(("reduce", "scores", "kept"), [("sum", [12, 10], 0), ("mean", [4, 10], 1)])
def test_sum_and_mean_by_hand(
    reduce: Any, scores: list[float], kept: int, planned: Callable[..., Plan], source: Any
) -> None:
    """Outputs (3, 4), (5, 0), (0, 2) have lengths 5 + 5 + 2 = 12, 4 on average; (6, -8) has 10. Gates do not count."""
    activity = ExpertActivity(2)
    for expert, outputs in enumerate([[[3.0, 4.0], [5.0, 0.0], [0.0, 2.0]], [[6.0, -8.0]]]):
        y_ND = torch.tensor(outputs)
        activity.expert(expert, y_ND, y_ND, y_ND, torch.full((len(y_ND),), 0.1 + expert))
    (layer,) = planned(EAN(ratio=0.5, reduce=reduce), [source(0, torch.ones(2, 2))], [[activity]]).layers
    assert layer.facts["scores"] == scores
    assert layer.kept == [kept]


def test_another_reduction_is_refused() -> None:
    with pytest.raises(ValidationError, match="'sum' or 'mean'"):
        EAN(ratio=0.5, reduce="max")  # type: ignore[arg-type]
