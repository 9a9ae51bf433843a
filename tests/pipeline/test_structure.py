"""Runs that take whole parts of a dense model first, and single weights then."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stun_exp.checkpoint.load import load_checkpoint

Runner = Callable[..., dict[str, Any]]
BOTH = ("expert_pruner=none", "sparsity=0.5")


@pytest.mark.parametrize(
    "chosen",
    [
        ("structured_pruner=neurons", "structured_pruner.ratio=0.2"),
        ("structured_pruner=neurons", "structured_pruner.ratio=0.2", "structured_pruner.budget=per_layer"),
        ("structured_pruner=layers", "structured_pruner.ratio=0.33"),
    ],
)
@pytest.mark.parametrize("scope", ["decoder", "model"])
def test_the_total_of_both_stages_is_met_on_disk(
    runner: Runner, tmp_path: Path, chosen: tuple[str, ...], scope: str
) -> None:
    report = runner(*BOTH, *chosen, f"sparsity_scope={scope}", "save=true", "sparsity=0.5", family="llama")
    assert report["sparsity"]["achieved"] == pytest.approx(0.5, abs=0.001)
    model = load_checkpoint(tmp_path / "run" / "checkpoint", torch.device("cpu"))
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    whole = 3 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24)
    counted = matrices if scope == "decoder" else list(model.parameters())
    before = whole if scope == "decoder" else report["model"]["params_before"]
    left = (
        sum(int(p.count_nonzero()) for p in matrices)
        + sum(p.numel() for p in counted)
        - sum(p.numel() for p in matrices)
    )
    assert 1 - left / before == pytest.approx(report["sparsity"]["achieved"], abs=0.002)
    assert report["structure"]["weights_removed"] == whole - sum(p.numel() for p in matrices)
    assert not (tmp_path / "run" / "structured").exists()


def test_the_report_says_what_each_layer_had_and_has(runner: Runner) -> None:
    report = runner(*BOTH, "structured_pruner=layers", "structured_pruner.ratio=0.33", family="llama")
    layers = report["structure"]["layers"]
    (gone,) = [layer for layer in layers if layer["dropped"]]
    assert (gone["units"], gone["groups"]) == ([24, 0], [2, 0])
    assert report["structure"]["kurtosis"].keys() == {"before", "after"}
    assert report["cost"]["structure"]["forward_passes"] == pytest.approx(1.0)
    assert len(report["sparsity"]["per_layer"]) == 2


def test_weights_alone_are_pruned_of_a_dense_model_as_of_any_other(runner: Runner) -> None:
    report = runner("expert_pruner=none", "allocation=owl", "sparsity=0.7", family="llama")
    assert report["sparsity"]["achieved"] == pytest.approx(0.7, abs=0.001)
    assert report["structure"] is None
    assert report["experts"] == {"before": [], "after": [], "ratio": 0.0}


def test_a_run_that_was_stopped_after_the_structured_stage_goes_on(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stun_exp.pipeline import run as line

    chosen = (*BOTH, "structured_pruner=neurons", "structured_pruner.ratio=0.2")
    monkeypatch.setattr(line, "prune_together", _stop)
    with pytest.raises(KeyboardInterrupt):
        runner(*chosen, family="llama")
    monkeypatch.undo()
    monkeypatch.setattr("stun_exp.pipeline.structure.structure", _never)
    report = runner(*chosen, family="llama")
    assert report["sparsity"]["achieved"] == pytest.approx(0.5, abs=0.001)


def test_what_was_damaged_meanwhile_is_made_again(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from stun_exp.pipeline import run as line

    chosen = (*BOTH, "structured_pruner=neurons", "structured_pruner.ratio=0.2")
    monkeypatch.setattr(line, "prune_together", _stop)
    with pytest.raises(KeyboardInterrupt):
        runner(*chosen, family="llama")
    monkeypatch.undo()
    shard = next((tmp_path / "run" / "structured").glob("model-00001*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    report = runner(*chosen, family="llama")
    assert any("structured: is not as it was written; it is made again" in line for line in report["warnings"])
    assert report["sparsity"]["achieved"] == pytest.approx(0.5, abs=0.001)


def _stop(*arguments: object) -> None:
    raise KeyboardInterrupt


def _never(*arguments: object) -> None:
    raise AssertionError("the structured stage was finished")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            ("expert_pruner=stun", "expert_pruner.ratio=0.2"),
            "no layer of .* has experts; pass expert_pruner=none",
        ),
        (("expert_pruner=none", "structured_pruner=layers", "sparsity_scope=experts"), "sparsity_scope=experts counts"),
        (("expert_pruner=none", "sparsity_scope=experts"), "sparsity_scope=experts: .* has no such weights"),
        (("expert_pruner=none", "structured_pruner=neurons", "structured_pruner.official=true"), "batch_size=1"),
        (("expert_pruner=none", "skipping=dynamic"), "the model is dense, and there are no experts to skip"),
    ],
)
def test_what_a_dense_model_cannot_do_is_refused_at_once(runner: Runner, settings: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        runner("sparsity=0.5", *settings, family="llama")


def test_a_mixture_keeps_its_parts(runner: Runner) -> None:
    with pytest.raises(ValueError, match="no parts of model_type=mixtral are known"):
        runner(*BOTH, "structured_pruner=neurons")
