"""Equal plans, and equal settings of all that follows, leave equal checkpoints: those are measured once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stun_exp.pipeline import evaluate
from stun_exp.state.artifacts import LOG

Runner = Callable[..., dict[str, Any]]
BENCHMARK = ["eval=toy", "eval.limit=2", *(f"~eval.benchmarks.toy_{name}" for name in ("gsm8k", "arc", "mmlu", "text"))]
TAKEN = "an equal checkpoint was measured before"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The checkpoints that benchmarks were run on."""
    found, measure = [], evaluate._measure

    def counted(benchmarks: Any, checkpoint: Any, *others: Any) -> evaluate.EvaluatedCheckpoint:
        found.append(checkpoint.path)
        return measure(benchmarks, checkpoint, *others)

    monkeypatch.setattr(evaluate, "_measure", counted)
    return found


def test_equal_plans_are_measured_once(runner: Runner, tmp_path: Path, measured: list[Path]) -> None:
    """kappa=1 is below any number of clusters, as 0 is; kappa=6 merges what the others drop; 0.5 leaves other zeros."""
    common = [*BENCHMARK, "expert_pruner.ratio=0.25", "cache=folder", f"cache.path={tmp_path}/cache"]
    points = {
        name: runner(*common, *settings, out=tmp_path / name)
        for name, settings in {
            "first": ["expert_pruner.kappa=0"],
            "equal": ["expert_pruner.kappa=1"],
            "merged": ["expert_pruner.kappa=6"],
            "sparser": ["expert_pruner.kappa=0", "sparsity=0.5"],
        }.items()
    }
    plans = {name: report["expert_stage"]["plan_id"] for name, report in points.items()}
    assert plans["first"] == plans["equal"] == plans["sparser"] != plans["merged"]
    assert [path.parent.name for path in measured] == ["first", "merged", "sparser"]
    assert points["equal"]["metrics"] == points["first"]["metrics"]
    assert (tmp_path / "equal/samples.jsonl").read_bytes() == (tmp_path / "first/samples.jsonl").read_bytes()
    said = {name: (tmp_path / name / LOG).read_text() for name in points}
    assert [name for name in points if TAKEN in said[name]] == ["equal"]
    assert all(f"plan {plans[name]}: 14 of 18 experts stay" in said[name] for name in points)


def test_an_equal_plan_pays_again_where_nothing_is_kept(runner: Runner, tmp_path: Path, measured: list[Path]) -> None:
    for name in ("first", "again"):
        runner(*BENCHMARK, "expert_pruner.ratio=0.25", "cache=none", out=tmp_path / name)
    assert [path.parent.name for path in measured] == ["first", "again"]
