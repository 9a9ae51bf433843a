"""Zeros that a checkpoint already has: told apart from what a run prunes, and no obstacle to pruning further."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stun_exp.checkpoint.census import num_zeros
from stun_exp.checkpoint.checkpoint import Checkpoint

Runner = Callable[..., dict[str, Any]]
ALONE = ["unstructured_pruner=none", "sparsity_scope=experts"]
WANDA = ["expert_pruner=none", "unstructured_pruner=wanda", "allocation=uniform"]


@pytest.fixture
def pruned(runner: Runner, tmp_path: Path) -> str:
    """The tiny Mixtral after Wanda at 40 %, as the setting that names it."""
    runner(*WANDA, "sparsity=0.4", "save=true", out=tmp_path / "first")
    return f"model.path={tmp_path / 'first' / 'checkpoint'}"


def on_disk(folder: Path) -> float:
    """Share of zeros in the matrices of the layers."""
    checkpoint = Checkpoint(folder, None)
    matrices = [m.weight_OC for i in range(checkpoint.num_layers) for m in checkpoint.read_layer(i).matrices()]
    return sum(map(num_zeros, matrices)) / sum(matrix.numel() for matrix in matrices)


def test_weights_are_pruned_further(runner: Runner, pruned: str, tmp_path: Path) -> None:
    """To a total that counts what was zero before, as in the field: the weight stage takes those first."""
    report = runner(pruned, *WANDA, "sparsity=0.6", "save=true", out=tmp_path / "second")
    assert report["sparsity"]["achieved"] == pytest.approx(0.6, abs=0.001)
    assert report["sparsity"]["source_zeros"] == pytest.approx(0.4, abs=0.001)
    assert on_disk(tmp_path / "second" / "checkpoint") == pytest.approx(0.6, abs=0.001)
    assert any("% of the weights in scope are zero in the source already" in w for w in report["warnings"])
    assert sum(layer["source_zeros"] for layer in report["sparsity"]["per_layer"]) > 0


def test_experts_go_from_a_pruned_model(runner: Runner, pruned: str) -> None:
    """The table shows what was removed, not what was zero before in the experts that stay."""
    report = runner(pruned, *ALONE, "expert_pruner=random", "expert_pruner.ratio=0.5", "sparsity=0.5")
    assert report["sparsity"]["achieved"] == pytest.approx(0.5)
    assert report["sparsity"]["source_zeros"] == pytest.approx(0.4, abs=0.002)
    (layer, *_) = report["sparsity"]["per_layer"]
    assert layer["zeros"] == 0
    assert layer["other_zeros"] == pytest.approx(0.4 * (layer["weights_in_scope"] - layer["removed"]), rel=0.01)


def test_experts_and_weights_together_of_a_pruned_model(runner: Runner, pruned: str, tmp_path: Path) -> None:
    report = runner(
        pruned, "expert_pruner=random", "expert_pruner.ratio=0.25", "allocation=uniform", "sparsity=0.6", "save=true"
    )
    assert report["sparsity"]["achieved"] == pytest.approx(0.6, abs=0.001)
    left = report["sparsity"]["weights_ratio"]
    assert on_disk(tmp_path / "run" / "checkpoint") == pytest.approx(left, abs=0.001)


@pytest.mark.parametrize("sparsity", [0.3, 0.5])
def test_a_total_that_the_zeros_exceed_is_refused_before_anything_is_run(
    runner: Runner, pruned: str, tmp_path: Path, sparsity: float
) -> None:
    """Without the expert stage's plan: whichever experts go, 40 % of what stays is zero."""
    with pytest.raises(
        ValueError, match=r"0\.40\d\d of the weights in scope are zero before the weight stage"
    ) as error:
        runner(pruned, "expert_pruner=random", "expert_pruner.ratio=0.25", f"sparsity={sparsity}")
    assert "the total is at least 0.5" in str(error.value)
    assert not (tmp_path / "run" / "journal.jsonl").exists()


def test_the_total_that_is_said_to_be_possible_is(runner: Runner, pruned: str) -> None:
    with pytest.raises(ValueError, match=r"pass sparsity=") as error:
        runner(pruned, *WANDA, "sparsity=0.2")
    (least,) = [word for word in str(error.value).split() if word.startswith("sparsity=") and "0.2" not in word]
    report = runner(pruned, *WANDA, least)
    assert report["sparsity"]["achieved"] == pytest.approx(float(least.partition("=")[2]), abs=0.001)


def test_an_allocation_that_gives_a_layer_less_than_is_zero_there_is_refused(
    runner: Runner, mixtral_copy: Path, tmp_path: Path
) -> None:
    """In the sum there would be room: one layer alone has zeros, more than its share. No weight has been pruned."""
    tensors = load_file(mixtral_copy / "model.safetensors")
    for key in tensors:
        if ".layers.1." in key and "experts" in key:
            tensors[key] = tensors[key] * (torch.arange(tensors[key].shape[1]) % 10 < 2)  # 80 % are zero
    save_file(tensors, mixtral_copy / "model.safetensors", {"format": "pt"})
    asked = [f"model.path={mixtral_copy}", *WANDA, "sparsity_scope=experts"]
    with pytest.raises(ValueError, match=r"with this allocation at least 0\.4"):
        runner(*asked, "sparsity=0.3")
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_rows_with_more_zeros_than_their_share_are_told(runner: Runner, mixtral_copy: Path) -> None:
    """By a warning, and the table has what is on disk: Wanda takes as much from every row, and cannot give any back."""
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(mixtral_copy / "model.safetensors")
    for key in tensors:
        if "experts" in key:
            tensors[key] = tensors[key] * (torch.rand(tensors[key].shape, generator=generator) < 0.5)
    save_file(tensors, mixtral_copy / "model.safetensors", {"format": "pt"})
    asked = [f"model.path={mixtral_copy}", *WANDA, "sparsity_scope=experts", "sparsity=0.52"]
    report = runner(*asked)
    assert 0.52 < report["sparsity"]["achieved"] < 0.6
    assert any("in some rows more than the weight stage would take" in warning for warning in report["warnings"])


def test_zeros_outside_the_pruned_matrices_are_not_pruned(runner: Runner, mixtral_copy: Path) -> None:
    """Under sparsity_scope=model every parameter is in scope: a bias or a norm that is zero was never pruned."""
    tensors = load_file(mixtral_copy / "model.safetensors")
    for key in tensors:
        if "layernorm" in key:
            tensors[key] = torch.zeros_like(tensors[key])
    save_file(tensors, mixtral_copy / "model.safetensors", {"format": "pt"})
    report = runner(f"model.path={mixtral_copy}", *WANDA, "sparsity_scope=model", "sparsity=0.4")
    assert report["sparsity"]["achieved"] == pytest.approx(0.4, abs=0.001)
    assert [layer["other_zeros"] for layer in report["sparsity"]["per_layer"]] == [32, 32, 32]
