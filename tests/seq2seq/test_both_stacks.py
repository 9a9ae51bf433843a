"""Encoder-decoders end to end: both stacks are calibrated, pruned, counted and written.

Shapes: B sequences of a batch, T tokens.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.moe.layers import layers_of
from stun_exp.streaming.walk import Walk

CPU = torch.device("cpu")
Runner = Callable[..., dict[str, Any]]
Logits = Callable[..., Tensor]


@pytest.fixture
def runner(tiny_model: Callable[[str], Path], run_with: Runner, draw: Callable[..., Tensor], tmp_path: Path) -> Runner:
    """Runs a tiny model, or a folder, with overrides into tmp_path/run and returns the report.

    Calibrates on 24 sources of 20 tokens with targets of 14 and of 13.
    """
    text = tmp_path / "pairs.jsonl"
    rows = [
        {"input_ids": draw(pair, 20).tolist(), "labels": draw(pair + 100, 14 - pair % 2).tolist()} for pair in range(24)
    ]
    text.write_text("\n".join(json.dumps(row) for row in rows))

    def go(model: str | Path, *overrides: str, out: Path = tmp_path / "run") -> dict[str, Any]:
        base = [
            f"model.path={tiny_model(model) if isinstance(model, str) else model}",
            "calibration=pairs",
            f"calibration.path={text}",
            "calibration.sequence_length=32",
            "calibration.num_sequences=24",
            "calibration.batch_size=4",
            "save=true",
        ]
        return run_with(out, *base, *overrides)

    return go


def layer_inputs(checkpoint: Checkpoint, model: PreTrainedModel, run: Callable[[], Any]) -> list[Tensor]:
    """What each layer of the whole model is given, and at last what the decoder's final norm is."""
    seen: list[Tensor] = []
    (norm,) = {"decoder.final_layer_norm", "model.decoder.layer_norm"} & dict(model.named_modules()).keys()
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        for path in (*checkpoint.paths, norm)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return seen


# --- Walking both stacks


def test_streamed_equals_whole_in_both_stacks(
    tiny_model: Callable[[str], Path], logits: Logits, family: str, sources_BT: list[Tensor], targets_BT: list[Tensor]
) -> None:
    """Batches differ in size and length, so one that took another's mask, position bias or source would show."""
    checkpoint = Checkpoint(tiny_model(family), None)
    model = load_checkpoint(checkpoint.path, CPU)
    whole = [
        layer_inputs(checkpoint, model, lambda pair=pair: logits(model, *pair))
        for pair in zip(sources_BT, targets_BT, strict=True)
    ]
    for step in Walk(checkpoint, sources_BT, CPU, "test", targets_BT=targets_BT):
        for streamed_BTD, inputs in zip(step.hidden_BTD, whole, strict=True):
            torch.testing.assert_close(streamed_BTD, inputs[step.layer.index], rtol=1e-5, atol=1e-5)
    assert step.layer.index == 3
    step.forward()
    for streamed_BTD, inputs in zip(step.outputs_BTD or [], whole, strict=True):
        torch.testing.assert_close(streamed_BTD, inputs[4], rtol=1e-5, atol=1e-5)


def test_the_decoder_is_calibrated_behind_the_pruned_encoder(
    tiny_model: Callable[[str], Path], logits: Logits, family: str, sources_BT: list[Tensor], targets_BT: list[Tensor]
) -> None:
    """Guards against a decoder that attends to what the encoder gave before it was pruned.

    The decoder's first layer is given the same embeddings whatever the encoder does; what it gives on tells.
    """
    checkpoint = Checkpoint(tiny_model(family), None)
    model = load_checkpoint(checkpoint.path, CPU)

    def whole() -> Tensor:
        return layer_inputs(checkpoint, model, lambda: logits(model, sources_BT[0], targets_BT[0]))[3]

    untouched = whole()
    layers_of(model, checkpoint.family)[1].experts.down_proj.data.zero_()
    expected = whole()
    for step in Walk(checkpoint, sources_BT[:1], CPU, "test", targets_BT=targets_BT[:1]):
        if step.layer.index == 1:
            step.forward()
            step.layer.experts.down_proj.zero_()
            step.changed()
        if step.layer.index == 3:
            torch.testing.assert_close(step.hidden_BTD[0], expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, untouched, atol=1e-3)


# --- The whole line


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt"])
def test_experts_and_weights_go_from_both_stacks(runner: Runner, family: str, pruner: str, tmp_path: Path) -> None:
    """Counted here from the written files against the source's parameters: no budget code involved."""
    report = runner(
        family, "expert_pruner=reap", "expert_pruner.ratio=0.34", "sparsity=0.5", f"unstructured_pruner={pruner}"
    )
    assert (report["experts"]["before"], report["experts"]["after"]) == ([6, 6], [4, 4])
    source, written = (Checkpoint(Path(report["model"]["source"]), None), Checkpoint(tmp_path / "run/checkpoint", None))
    assert [written.outline(index).num_experts for index in range(4)] == [0, 4, 0, 4]

    def weights(checkpoint: Checkpoint, layers: range) -> list[Tensor]:
        return [matrix.weight_OC for index in layers for matrix in checkpoint.read_layer(index).matrices()]

    for layers in (range(2), range(2, 4)):
        left = sum(int(weight.count_nonzero()) for weight in weights(written, layers))
        gone = 1 - left / sum(weight.numel() for weight in weights(source, layers))
        rows = [row for row in report["sparsity"]["per_layer"] if row["layer"] in layers]
        reported = sum(row["removed"] + row["zeros"] for row in rows) / sum(row["weights_in_scope"] for row in rows)
        assert gone == pytest.approx(reported, abs=1e-9)
        assert 0.4 < gone < 0.6
    everything = sum(weight.numel() for weight in weights(source, range(4)))
    left = sum(int(weight.count_nonzero()) for weight in weights(written, range(4)))
    assert 1 - left / everything == pytest.approx(0.5, abs=0.001)


def test_layers_are_numbered_through_from_the_encoders_first(runner: Runner, family: str, tmp_path: Path) -> None:
    """Guards against a decoder layer that is taken for the encoder's of the same place."""
    report = runner(family, "expert_pruner=reap", "expert_pruner.ratio=0.2")
    plan = json.loads((tmp_path / "run/plan.json").read_text())["layers"]
    assert [layer["layer"] for layer in plan] == [1, 3]
    profile = json.loads((tmp_path / "run/retained_experts.json").read_text())
    assert profile["retained_experts"] == {str(layer["layer"]): layer["kept"] for layer in plan}
    assert [row["layer"] for row in report["sparsity"]["per_layer"]] == [0, 1, 2, 3]
    experts = 1 if family == "switch_transformers" else 2
    received = [sum(row["calibration_tokens"]) for row in report["sparsity"]["per_layer"]]
    assert received == [0, experts * 24 * 20, 0, experts * (12 * 14 + 12 * 13)]
    assert report["cost"]["prune"]["forward_passes"] == 2


def test_the_written_checkpoint_is_the_plan_and_the_masks(
    runner: Runner, logits: Logits, family: str, tmp_path: Path, sources_BT: list[Tensor], targets_BT: list[Tensor]
) -> None:
    """The source with the planned experts removed and the written zeros applied gives the reloaded model's logits."""
    report = runner(family, "expert_pruner=reap", "expert_pruner.ratio=0.34", "sparsity=0.5")
    by_hand = load_checkpoint(Path(report["model"]["source"]), CPU)
    written = Checkpoint(tmp_path / "run/checkpoint", None)
    plan = {layer["layer"]: layer["groups"] for layer in json.loads((tmp_path / "run/plan.json").read_text())["layers"]}
    for layer in layers_of(by_hand, written.family):
        if layer.index in plan:
            layer.regroup(plan[layer.index])
        for matrix, kept in zip(layer.matrices(), written.read_layer(layer.index).matrices(), strict=True):
            matrix.weight_OC.mul_(kept.weight_OC != 0)
    reloaded = load_checkpoint(written.path, CPU)
    for pair in zip(sources_BT, targets_BT, strict=True):
        # Weights that lie elsewhere in memory may take other kernels, which differ in the last digits.
        torch.testing.assert_close(logits(by_hand, *pair), logits(reloaded, *pair), rtol=1e-5, atol=1e-5)


def test_a_written_switch_transformer_loads_in_stock_transformers(
    runner: Runner, logits: Logits, tmp_path: Path, sources_BT: list[Tensor], targets_BT: list[Tensor]
) -> None:
    runner("switch_transformers", "expert_pruner=reap", "expert_pruner.ratio=0.34", "sparsity=0.5")
    stock = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run/checkpoint").eval()
    ours = load_checkpoint(tmp_path / "run/checkpoint", CPU)
    # Weights that lie elsewhere in memory may take other kernels, which differ in the last digits.
    pair = (sources_BT[0], targets_BT[0])
    torch.testing.assert_close(logits(stock, *pair), logits(ours, *pair), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pruner", ["frequency", "reap", "greedy_reconstruction", "hc_smoe", "stun"])
def test_expert_pruners_work_on_both_stacks(runner: Runner, family: str, pruner: str) -> None:
    """STUN by its router rows: a top-1 router has no coactivation."""
    overrides = ("expert_pruner.lambda2=0", "expert_pruner.budget=per_layer") if pruner == "stun" else ()
    report = runner(family, f"expert_pruner={pruner}", "expert_pruner.ratio=0.34", "sparsity=0.5", *overrides)
    assert report["experts"]["after"] == [4, 4]
    assert report["sparsity"]["achieved"] == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize("pruner", ["frequency", "reap", "hc_smoe", "stun"])
def test_tokens_over_capacity_are_no_obstacle(
    runner: Runner, with_settings: Callable[..., Checkpoint], pruner: str
) -> None:
    """A published Switch model reads 512 tokens with 64 places an expert, so some are always over capacity."""
    overrides = ("expert_pruner.lambda2=0",) if pruner == "stun" else ()
    model = with_settings("switch_transformers", expert_capacity=2).path
    report = runner(model, f"expert_pruner={pruner}", "sparsity=0.5", *overrides)
    assert report["sparsity"]["achieved"] == pytest.approx(0.5, abs=0.001)
    received = [sum(row["calibration_tokens"]) for row in report["sparsity"]["per_layer"]]
    assert 0 < received[1] <= 24 * 6 * 2 < 24 * 20


def test_skipping_measures_the_gates_of_both_stacks(runner: Runner) -> None:
    report = runner("nllb-moe", "expert_pruner=reap", "sparsity=0.4", "skipping=dynamic")
    thresholds = report["skipping"]["per_layer"]
    assert [layer["layer"] for layer in thresholds] == [1, 3]
    # Half of the tokens skip one of two experts, but for the one or two in the middle.
    assert all(layer["calibration"] == pytest.approx(0.25, abs=0.005) for layer in thresholds)
    assert report["cost"]["skip"]["forward_passes"] == 1


# --- What is refused


def test_coactivation_of_a_top_1_router_is_refused(runner: Runner) -> None:
    with pytest.raises(
        ValueError, match=r"no two experts were ever active together \(top-1 routing\?\); set lambda2=0"
    ):
        runner("switch_transformers", "expert_pruner.lambda2=0.5")


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ("switch_transformers", ("calibration=local",), "encoder-decoder, .*: pass calibration=pairs"),
        ("mixtral", (), "the model is decoder-only"),
        ("nllb-moe", ("recovery=expert_distillation",), "recovery trains decoder-only models alone;.*recovery=none"),
        ("nllb-moe", ("calibration.sequence_length=65",), "sequence_length=65: the model takes at most 64 tokens"),
        ("switch_transformers", ("skipping=dynamic",), r"layer 1 chooses one expert a token \(top_k=1\)"),
        ("switch_transformers", ("unstructured_pruner.pattern=4:16",), "24 inputs of layer 0's layer.1.mlp.wo"),
    ],
)
def test_what_cannot_be_done_stops_before_any_weight(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, model: str, overrides: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(Checkpoint, "_read", lambda *args: pytest.fail("read weights"))
    with pytest.raises(ValueError, match=message):
        runner(model, *overrides)
