"""How many experts each layer keeps is known, where routers say it, before any other weight is read."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from edited_weights import edited
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.router_norm import RouterNorm
from stun_exp.moe.counts import by_layer
from stun_exp.pipeline.budget import expected_counts
from stun_exp.pipeline.experts import even_counts
from stun_exp.pipeline.kept_experts import kept_experts

Runner = Callable[..., dict[str, Any]]
ROUTERS = "dry_run=true: of the weights only routers were read"
NOTHING = "dry_run=true: no weights were read"


@pytest.fixture
def tensors_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all tensors that are read from here on."""
    names: list[str] = []
    read = Checkpoint._read

    def noted(self: Checkpoint, wanted: Iterable[str]) -> dict[str, Tensor]:
        listed = list(wanted)
        names.extend(listed)
        return read(self, listed)

    monkeypatch.setattr(Checkpoint, "_read", noted)
    monkeypatch.setattr(Checkpoint, "read_layer", lambda *args: pytest.fail("read a layer"))
    return names


def kept_lines(out: str) -> list[str]:
    """What a dry run says of the experts that are kept, a line for each layer or some alike."""
    lines = out.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("experts kept"))
    return [line[18:] for line in lines[first : first + 1]] + [line[18:] for line in lines if line.startswith(" " * 18)]


def test_neighbors_with_equal_numbers_are_told_together() -> None:
    assert by_layer([(0, 5, 8), (1, 5, 8), (2, 4, 8), (3, 4, 6), (5, 4, 6)]) == [
        "layers 0-1: 5 of 8",
        "layer 2: 4 of 8",
        "layers 3-5: 4 of 6",
    ]
    assert by_layer([]) == []


@pytest.mark.parametrize(
    "pruner",
    [
        ["expert_pruner=stun"],
        ["expert_pruner=stun", "expert_pruner.linkage=official"],
        ["expert_pruner=stun", "expert_pruner.budget=per_layer"],
        ["expert_pruner=router_norm"],
    ],
    ids=" ".join,
)
def test_a_dry_run_shows_what_the_run_keeps_and_reads_routers_alone(
    runner: Runner, capsys: pytest.CaptureFixture[str], pruner: list[str], tmp_path: Path, request: Any
) -> None:
    """STUN's representatives, which are chosen by the experts' weights, change no number."""
    settings = [*pruner, "expert_pruner.ratio=0.4", "sparsity=0.5", "expert_pruner.lambda2=0.0"]
    settings = settings[:-1] if "router_norm" in pruner[0] else settings
    after = runner(*settings)["experts"]["after"]
    capsys.readouterr()
    names = request.getfixturevalue("tensors_read")
    assert runner("dry_run=true", *settings, out=tmp_path / "dry") == {}
    out = capsys.readouterr().out
    assert kept_lines(out) == by_layer((layer, n, 6) for layer, n in enumerate(after))
    assert out.splitlines()[-1] == ROUTERS
    assert len(names) == 3
    assert all("gate" in name for name in names)


def test_the_numbers_of_a_dry_run_are_those_of_its_budget(runner: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner("dry_run=true", "sparsity=0.4", "expert_pruner.ratio=0.2") == {}
    assert "weights in scope  23,040" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["expert_pruner=none"], ["layers 0-2: 6 of 6"]),
        (["expert_pruner=random", "expert_pruner.ratio=0.5", "sparsity=0.6"], ["layers 0-2: 3 of 6"]),
        (["expert_pruner=frequency"], ["not known yet, the expert pruner needs calibration data"]),
        (["expert_pruner.lambda2=1.0"], ["not known yet, the expert pruner needs calibration data"]),
        (["expert_pruner.representative=frequent"], ["not known yet, the expert pruner needs calibration data"]),
    ],
    ids=lambda one: " ".join(one),
)
def test_where_no_router_is_wanted_no_weight_is_read(
    runner: Runner, capsys: pytest.CaptureFixture[str], tensors_read: list[str], settings: list[str], told: list[str]
) -> None:
    assert runner("dry_run=true", "sparsity=0.4", *settings) == {}
    out = capsys.readouterr().out
    assert kept_lines(out) == told
    assert out.splitlines()[-1] == NOTHING
    assert tensors_read == []


def test_what_only_the_experts_weights_say_is_not_shown(
    runner: Runner, capsys: pytest.CaptureFixture[str], tensors_read: list[str]
) -> None:
    assert runner("dry_run=true", "sparsity=0.4", "expert_pruner.lambda_weights=1.0") == {}
    assert kept_lines(capsys.readouterr().out) == ["not known yet, the expert pruner needs the weights of experts"]


def test_a_threshold_that_keeps_another_number_says_what_each_layer_would_keep(
    runner: Runner, tensors_read: list[str]
) -> None:
    """In a run too, before its calibration: above all distances every layer keeps what its router needs."""
    asked = ("sparsity=0.5", "expert_pruner.ratio=0.2", "expert_pruner.lambda2=0.0", "expert_pruner.threshold=1000.0")
    with pytest.raises(ValueError, match=r"threshold=1000 keeps 6 of 18 experts") as error:
        runner(*asked)
    assert str(error.value).endswith("; this one keeps in layers 0-2: 2 of 6")
    assert all("gate" in name for name in tensors_read)


def test_a_limit_that_rules_the_ratio_out_says_what_stays(runner: Runner, tensors_read: list[str]) -> None:
    asked = ("sparsity=0.5", "expert_pruner.ratio=0.4", "expert_pruner.max_removed_per_layer=1")
    with pytest.raises(ValueError, match=r"at least so many stay in layers 0-2: 5 of 6"):
        runner(*asked, "expert_pruner.lambda2=0.0")


def test_a_ratio_that_no_layer_can_lose_says_what_each_would_keep(mixtral: Checkpoint) -> None:
    with pytest.raises(ValueError, match=r"at most 0\.6667; even shares would keep in layers 0-1: 1 of 6"):
        expected_counts(mixtral, 0.8)


def test_an_even_share_below_what_a_router_needs_says_what_each_layer_would_keep(mixtral: Checkpoint) -> None:
    layers: Any = [mixtral.outline(index) for index in range(3)]
    with pytest.raises(ValueError, match=r"lower ratio, which would keep in layers 0-1: 1 of 6, layer 2: 2 of 6"):
        even_counts(layers, 0.8)


def test_a_plan_of_another_model_is_refused_before_weights_are_read(
    runner: Runner, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    runner("sparsity=0.4", "expert_pruner.ratio=0.2")
    plan = ("expert_pruner=from_plan", f"expert_pruner.path={tmp_path / 'run'}", "sparsity=0.4")
    with pytest.raises(ValueError, match="the plan was made for another model"):
        runner(*plan, "dry_run=true", family="olmoe", out=tmp_path / "other")


def test_what_a_pruner_keeps_is_that_of_its_plan(mixtral: Checkpoint) -> None:
    """The default, for pruners that say nothing of their own: numbers, not the experts."""
    kept = kept_experts(mixtral, RouterNorm(ratio=0.5))
    assert kept.num_kept == {0: 3, 1: 3, 2: 3}
    assert kept.routers_read


def test_a_router_of_nan_is_left_to_the_run_which_names_it(mixtral_copy: Path) -> None:
    """It looks at every weight, and says which are damaged; clustering would say that a matrix is not finite."""

    def damage(tensors: dict[str, Tensor]) -> None:
        gate = next(name for name in tensors if name.endswith("gate.weight"))
        tensors[gate][0, 0] = torch.nan

    edited(mixtral_copy, damage)
    kept = kept_experts(Checkpoint(mixtral_copy, None), RouterNorm(ratio=0.5))
    assert (kept.num_kept, kept.told) == (None, ["not known yet, a router holds NaN or infinity"])
