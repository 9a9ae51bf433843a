"""What runs gather for each other: bit for bit what they would gather by themselves, and no pass more than needed."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from stun_exp.moe.plan import LayerPlan, Plan
from stun_exp.state.cache import NoCache, Store
from stun_exp.state.statistics_cache import DenseInputs, StatisticsCache
from stun_exp.streaming.walk import Step

Runner = Callable[..., dict[str, Any]]
WANT_DATA = {
    "stun": "expert_pruner.lambda2=0.5",
    "frequency": "",
    "reap": "",
    "exhaustive": "",
    "greedy_reconstruction": "",
    "m_smoe": "",
    "hc_smoe": "",
}


def cached_seconds(report: dict[str, Any]) -> float:
    """What the expert stage is charged with and has not spent."""
    cost = report["cost"]["experts"]
    return float(cost["charged_seconds"] - cost["wall_seconds"])


def weights(run: Path) -> dict[str, str]:
    found = {f.name: sha256(f.read_bytes()).hexdigest() for f in (run / "checkpoint").glob("*.safetensors")}
    assert found
    return found


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of batches of each forward of a layer, from now on."""
    counted: list[int] = []
    forward = Step.forward

    def counting(step: Step, passes: float = 1.0, batches: int | None = None) -> None:
        counted.append(len(step.hidden_BTD[:batches]))
        forward(step, passes, batches)

    monkeypatch.setattr(Step, "forward", counting)
    return counted


@pytest.mark.parametrize("pruner", WANT_DATA)
def test_a_plan_from_what_is_known_is_the_plan(
    pruner: str, runner: Runner, tmp_path: Path, forwards: list[int]
) -> None:
    """And what is known serves other ratios: of a whole plan nothing is taken but the plan of the same ratio."""
    common = [
        "save=true",
        "sparsity=0.5",
        f"expert_pruner={pruner}",
        "allocation=uniform",
        *filter(None, [WANT_DATA[pruner]]),
    ]
    common += ["unstructured_pruner=magnitude", "measure_damage=false"]
    cache = ["cache=folder", f"cache.path={tmp_path / 'cache'}"]
    runner(*common, *cache, "expert_pruner.ratio=0.5", out=tmp_path / "first")
    cold = runner(*common, "expert_pruner.ratio=0.25", out=tmp_path / "cold")
    forwards.clear()
    warm = runner(*common, *cache, "expert_pruner.ratio=0.25", out=tmp_path / "warm")
    if pruner not in ("exhaustive", "greedy_reconstruction"):  # their Gram matrices reach as far as the ratio asks
        assert max(forwards) == 1  # the proof that the written checkpoint runs
    forwards.clear()
    again = runner(*common, *cache, "expert_pruner.ratio=0.25", out=tmp_path / "again")
    assert max(forwards) == 1
    for found in (warm, again):
        assert found["cost"]["experts"]["forward_passes"] == cold["cost"]["experts"]["forward_passes"]
        assert (tmp_path / "warm/plan.json").read_text() == (tmp_path / "cold/plan.json").read_text()
    assert weights(tmp_path / "cold") == weights(tmp_path / "warm") == weights(tmp_path / "again")
    assert cached_seconds(cold) == 0 < cached_seconds(again)


def test_another_pruner_takes_what_it_needs_too(runner: Runner, tmp_path: Path, forwards: list[int]) -> None:
    """REAP and EAN look at one statistic; a third wants another one, and the model is run for it."""
    common = ["sparsity=0.5", "expert_pruner.ratio=0.25", "allocation=uniform", "unstructured_pruner=magnitude"]
    common += ["measure_damage=false", "cache=folder", f"cache.path={tmp_path / 'cache'}"]
    runner(*common, "expert_pruner=reap", out=tmp_path / "reap")
    forwards.clear()
    runner(*common, "expert_pruner=ean", out=tmp_path / "ean")
    assert max(forwards) == 1
    runner(*common, "expert_pruner=hc_smoe", out=tmp_path / "hc_smoe")
    assert max(forwards) == 4


@pytest.mark.parametrize("allocation", ["uniform", "owl"])
@pytest.mark.parametrize("starved", ["every_token", "shared"])
def test_dense_inputs_serve_every_sparsity(
    allocation: str, starved: str, runner: Runner, tmp_path: Path, forwards: list[int]
) -> None:
    """Bit for bit, diagnostics included; only the first of four batches goes along, for the reconstruction error."""
    common = ["save=true", "expert_pruner.ratio=0.25", f"allocation={allocation}", "unstructured_pruner.inputs=dense"]
    common += [f"unstructured_pruner.starved={starved}", "unstructured_pruner.min_tokens=60"]
    cache = ["cache=folder", f"cache.path={tmp_path / 'cache'}"]
    runner(*common, *cache, "sparsity=0.4", out=tmp_path / "first")
    cold = runner(*common, "sparsity=0.6", out=tmp_path / "cold")
    forwards.clear()
    warm = runner(*common, *cache, "sparsity=0.6", out=tmp_path / "warm")
    assert set(forwards) == {1}
    for stage in ("allocate", "prune"):
        assert warm["cost"][stage]["forward_passes"] == pytest.approx(cold["cost"][stage]["forward_passes"])
    assert weights(tmp_path / "cold") == weights(tmp_path / "warm")
    assert cold["diagnostics"] == warm["diagnostics"]
    assert cold["warnings"] == warm["warnings"]


def test_a_damaged_entry_is_told_and_gathered_again(runner: Runner, tmp_path: Path) -> None:
    common = ["save=true", "sparsity=0.5", "expert_pruner.ratio=0.25", "unstructured_pruner.inputs=dense"]
    common += ["measure_damage=false", "cache=folder", f"cache.path={tmp_path / 'cache'}"]
    runner(*common, out=tmp_path / "first")
    damaged = sorted((tmp_path / "cache/inputs").rglob("*/*"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = runner(*common, out=tmp_path / "again")
    assert [warning for warning in again["warnings"] if str(damaged) in warning]
    assert weights(tmp_path / "first") == weights(tmp_path / "again")
    assert not [w for w in runner(*common, out=tmp_path / "third")["warnings"] if "damaged" in w]


@pytest.mark.parametrize(
    "other", ["seed=1", "calibration.num_sequences=12", "calibration.batch_size=2", "model.load=nf4"]
)
def test_nothing_is_taken_of_another_text_or_precision(
    other: str, runner: Runner, tmp_path: Path, forwards: list[int]
) -> None:
    common = ["sparsity=0.5", "expert_pruner=reap", "expert_pruner.ratio=0.25", "unstructured_pruner.inputs=dense"]
    common += ["measure_damage=false", "cache=folder", f"cache.path={tmp_path / 'cache'}"]
    runner(*common, out=tmp_path / "first")
    forwards.clear()
    taken = runner(*common, other, out=tmp_path / "other")["cost"]
    assert max(forwards) > 1
    assert taken["experts"]["charged_seconds"] == taken["experts"]["wall_seconds"]


def test_nothing_is_taken_of_another_model(runner: Runner, tmp_path: Path) -> None:
    common = ["sparsity=0.5", "expert_pruner=reap", "expert_pruner.ratio=0.25", "cache=folder"]
    common += [f"cache.path={tmp_path / 'cache'}"]
    runner(*common, out=tmp_path / "first")
    assert cached_seconds(runner(*common, family="qwen3_moe", out=tmp_path / "other")) == 0


def test_inputs_behind_experts_that_were_merged_otherwise_are_others() -> None:
    """Equal groups with other shares, or with units matched first, give other experts; other facts do not."""
    known = StatisticsCache(Store(NoCache(), pytest.fail), {})
    plan = LayerPlan(0, 3, [[0, 1], [2]], [0, 2], [[0.5, 0.5], [1.0]])
    others = [
        replace(plan, weights=[[0.25, 0.75], [1.0]]),
        replace(plan, aligned=True),
        replace(plan, groups=[[0], [2]], weights=None),
    ]
    keys = [DenseInputs(known, Plan([one], [], {}), {"modules": []}).of["plan"] for one in (plan, *others)]
    assert len(set(keys)) == 4
    assert DenseInputs(known, Plan([replace(plan, facts={"loss": 1})], [], {}), {"modules": []}).of["plan"] == keys[0]
