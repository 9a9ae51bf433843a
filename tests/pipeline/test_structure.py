"""Runs that take whole parts of a dense model first, and single weights then."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.pipeline import structure

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


SURGEON = (*BOTH, "structured_pruner=llm_surgeon", "structured_pruner.ratio=0.2", "structured_pruner.shots=3")


@pytest.mark.parametrize("chosen", [(), ("structured_pruner.shrink=false", "unstructured_pruner.pattern=2:4")])
def test_shots_meet_the_total_and_leave_nothing_behind(runner: Runner, tmp_path: Path, chosen: tuple[str, ...]) -> None:
    """With zeros in the place of narrower layers the weight stage takes them first."""
    report = runner(*SURGEON, *chosen, "allocation=uniform", "save=true", family="llama")
    assert report["sparsity"]["achieved"] == pytest.approx(0.5, abs=0.001 if not chosen else 0.1)
    model = load_checkpoint(tmp_path / "run" / "checkpoint", torch.device("cpu"))
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    left = sum(int(p.count_nonzero()) for p in matrices)
    assert 1 - left / (3 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24)) == pytest.approx(
        report["sparsity"]["achieved"], abs=0.001
    )
    shapes = {tuple(p.shape) for p in matrices}
    assert (shapes == {(16, 16), (8, 16), (24, 16), (16, 24)}) == bool(chosen)
    shots = report["structure"]["facts"]["shots"]
    assert len(shots) == 3
    taken = [shot["zeros" if chosen else "weights_removed"] for shot in shots]
    assert taken == sorted(taken)
    assert taken[-1] == pytest.approx(0.2 * 5760, abs=25)
    assert report["cost"]["structure"]["forward_passes"] == pytest.approx(9.0)
    assert not (tmp_path / "run" / "shots").exists()
    assert not (tmp_path / "run" / "structured").exists()


def test_zeros_of_the_first_stage_count_in_the_total(runner: Runner) -> None:
    """Where a row has more of them than the weight stage would take, the total is higher, and the run says so."""
    settings = (*SURGEON, "structured_pruner.shrink=false", "allocation=uniform")
    by_layer = runner(*settings, "unstructured_pruner=magnitude", "unstructured_pruner.group=layer", family="llama")
    assert by_layer["sparsity"]["achieved"] == pytest.approx(0.5, abs=0.001)
    assert by_layer["sparsity"]["source_zeros"] == pytest.approx(0.2, abs=0.01)
    by_row = runner(*settings, "resume=restart", "unstructured_pruner=wanda", family="llama")
    assert 0.5 < by_row["sparsity"]["achieved"] < 0.6
    assert any("were zero before, and in some rows more" in line for line in by_row["warnings"])


def test_an_interrupted_run_goes_on_with_the_shot_that_it_was_at(
    runner: Runner, run_with: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first two shots are kept, the second alone lies on disk, and the result is that of a run in one go."""
    decide, calls = structure.decide_cuts, list[Path]()

    def stopping(run: Any, inputs: Any, pruner: Any) -> Any:
        calls.append(inputs.checkpoint.path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decide(run, inputs, pruner)

    whole = runner(*SURGEON, family="llama", out=tmp_path / "whole")
    monkeypatch.setattr(structure, "decide_cuts", stopping)
    with pytest.raises(KeyboardInterrupt):
        runner(*SURGEON, family="llama")
    assert [path.name for path in (tmp_path / "run" / "shots").iterdir()] == ["2"]
    report = runner(*SURGEON, family="llama")
    assert [path.name for path in calls[2:]] == ["2", "2"]
    assert report["structure"] == whole["structure"]
    assert report["cost"]["structure"]["forward_passes"] == pytest.approx(9.0)
    assert not (tmp_path / "run" / "shots").exists()


def test_a_damaged_shot_begins_the_stage_again(runner: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    decide, calls = structure.decide_cuts, list[Path]()

    def stopping(run: Any, inputs: Any, pruner: Any) -> Any:
        calls.append(inputs.checkpoint.path)
        if len(calls) == 2:
            shard = next((tmp_path / "run" / "shots" / "1").glob("*.safetensors"))
            shard.write_bytes(shard.read_bytes()[:-1])
            raise KeyboardInterrupt
        return decide(run, inputs, pruner)

    monkeypatch.setattr(structure, "decide_cuts", stopping)
    with pytest.raises(KeyboardInterrupt):
        runner(*SURGEON, family="llama")
    report = runner(*SURGEON, family="llama")
    assert len(calls) == 2 + 3
    assert len(report["structure"]["facts"]["shots"]) == 3


def test_weights_between_shots_are_in_32_bits(
    runner: Runner, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a shot changes may be less than a step of 16 bits; in the end they are written as any pruned copy is."""
    decide, seen = structure.decide_cuts, list[tuple[torch.dtype, torch.dtype]]()

    def looking(run: Any, inputs: Any, pruner: Any) -> Any:
        seen.append((inputs.checkpoint.source_dtype, inputs.checkpoint.dtype))
        return decide(run, inputs, pruner)

    copytree(tiny_model("llama"), tmp_path / "bf16")
    load_checkpoint(tiny_model("llama"), torch.device("cpu")).bfloat16().save_pretrained(tmp_path / "bf16")
    monkeypatch.setattr(structure, "decide_cuts", looking)
    runner(*SURGEON, f"model.path={tmp_path / 'bf16'}", "model.dtype=bfloat16", "save=true", family="llama")
    assert seen == [(torch.bfloat16, torch.float32), *[(torch.float32, torch.float32)] * 2]
    written = load_checkpoint(tmp_path / "run" / "checkpoint", torch.device("cpu"))
    assert {parameter.dtype for parameter in written.parameters()} == {torch.bfloat16}


def test_gradients_are_refused_in_four_bits(runner: Runner) -> None:
    with pytest.raises(ValueError, match=r"model\.load=nf4 runs weights in 4 bits, and this structured_pruner takes"):
        runner(*SURGEON, "model.load=nf4", family="llama")
