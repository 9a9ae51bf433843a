"""The whole line on tiny random models: settings in, artifacts out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint

Runner = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
@pytest.mark.parametrize("scope", ["experts", "decoder", "model"])
def test_the_asked_sparsity_is_on_disk(runner: Runner, family: str, scope: str, tmp_path: Path) -> None:
    """Counted here from the written files alone, against the parameters of the source: no budget code involved."""
    overrides = ("sparsity=0.5", "expert_pruner.ratio=0.2", f"sparsity_scope={scope}", "save=true")
    report = runner(*overrides, family=family)
    source, written = (
        Checkpoint(Path(report["model"]["source"]), None),
        Checkpoint(tmp_path / "run/checkpoint", None),
    )

    def weights(checkpoint: Checkpoint) -> list[torch.Tensor]:
        if scope == "model":
            return list(load_checkpoint(checkpoint.path, torch.device("cpu")).parameters())
        layers = [checkpoint.read_layer(index) for index in range(checkpoint.num_layers)]
        kinds = {"expert"} if scope == "experts" else {"expert", "attention", "mlp"}
        return [matrix.weight_OC for layer in layers for matrix in layer.matrices() if matrix.kind in kinds]

    left = sum(int(tensor.count_nonzero()) for tensor in weights(written))
    gone = 1 - left / sum(tensor.numel() for tensor in weights(source))
    assert gone == pytest.approx(0.5, abs=0.001)
    assert report["sparsity"]["achieved"] == pytest.approx(gone, abs=1e-6)


def test_report_has_the_promised_keys(runner: Runner, tmp_path: Path) -> None:
    report = runner("sparsity=0.4", "expert_pruner.ratio=0.2", "expert_pruner.lambda2=0.5", "save=true")
    assert report["name"] == "test"
    assert report["seed"] == 0
    assert report["settings"]["expert_pruner"]["ratio"] == 0.2
    assert {"source", "model_type", "params_before", "params_after"} <= report["model"].keys()
    assert report["experts"]["before"] == [6, 6, 6]
    assert sum(report["experts"]["after"]) == 18 - round(0.2 * 18)
    assert {"target", "scope", "achieved", "weights_ratio", "per_layer"} <= report["sparsity"].keys()
    assert len(report["sparsity"]["per_layer"]) == 3
    for cost in report["cost"].values():
        assert {"wall_seconds", "peak_host_gib", "peak_device_gib", "forward_passes"} <= cost.keys()
    assert report["cost"]["experts"]["forward_passes"] == 1
    assert {"git_commit", "versions", "device", "calibration_tokens_sha256"} <= report["provenance"].keys()
    plan = json.loads((tmp_path / "run/plan.json").read_text())["layers"]
    assert all({"layer", "num_experts", "groups", "kept", "router"} <= layer.keys() for layer in plan)
    profile = json.loads((tmp_path / "run/retained_experts.json").read_text())
    assert list(profile["retained_experts"].values()) == [layer["kept"] for layer in plan]
    assert [len(layer["kept"]) for layer in plan] == report["experts"]["after"]
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text()) == report["settings"]
    assert json.loads((tmp_path / "run/sparsity.json").read_text()) == report["sparsity"]


def test_router_only_stun_costs_no_forward_pass(runner: Runner) -> None:
    """The O(1) claim in its strongest form: lambda2 = 0 reads router rows and sees no token."""
    assert runner("expert_pruner.lambda2=0.0")["cost"]["experts"]["forward_passes"] == 0


@pytest.mark.parametrize(
    ("overrides", "passes"),
    [
        (("unstructured_pruner=magnitude",), {"allocate": 0, "prune": 0}),
        (("method=unpruned",), {"allocate": 0, "prune": 0}),
        # One to gather, and one of the pruned layers, which feeds the next and tells how far each layer's output moved.
        (("unstructured_pruner=wanda",), {"allocate": 1, "prune": 2}),
        # Dense inputs need no second run but of the first of four batches, for the reconstruction error.
        (("unstructured_pruner=wanda", "unstructured_pruner.inputs=dense"), {"allocate": 1, "prune": 1.25}),
        (("unstructured_pruner=moe_pruner", "allocation=uniform"), {"allocate": 0, "prune": 2}),
    ],
)
def test_only_what_needs_data_is_charged_with_forward_passes(
    runner: Runner, overrides: tuple[str, ...], passes: dict[str, float]
) -> None:
    cost = runner(*overrides)["cost"]
    assert {stage: cost[stage]["forward_passes"] for stage in passes} == pytest.approx(passes)


def test_a_revision_of_a_folder_is_refused(runner: Runner) -> None:
    with pytest.raises(ValueError, match=r"model\.revision=abc is for hub repositories"):
        runner("model.revision=abc")


def test_one_seed_one_result(runner: Runner, tmp_path: Path) -> None:
    overrides = ("sparsity=0.5", "expert_pruner.lambda2=0.5", "save=true")
    first, second = runner(*overrides, out=tmp_path / "a"), runner(*overrides, out=tmp_path / "b")
    for key in ("sparsity", "experts", "metrics"):
        assert first[key] == second[key]
    shards = sorted((tmp_path / "a/checkpoint").glob("*.safetensors"))
    assert shards
    for file in shards:
        assert file.read_bytes() == (tmp_path / "b/checkpoint" / file.name).read_bytes()


def test_unpruned_run_is_the_identity(runner: Runner, tmp_path: Path) -> None:
    report = runner("method=unpruned", "save=true", "name=test", family="olmoe")
    source, written = (
        Checkpoint(Path(report["model"]["source"]), None),
        Checkpoint(tmp_path / "run/checkpoint", None),
    )
    for index in range(source.num_layers):
        state = written.read_layer(index).module.state_dict()
        for name, tensor in source.read_layer(index).module.state_dict().items():
            assert torch.equal(state[name], tensor)
    assert report["sparsity"]["achieved"] == 0


def test_equal_layers_load_in_stock_transformers(runner: Runner, tmp_path: Path) -> None:
    runner("expert_pruner=none", "sparsity=0.5", "save=true", family="qwen3_moe")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "run/checkpoint")
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        ours = load_checkpoint(tmp_path / "run/checkpoint", torch.device("cpu"))(ids).logits
        # Weights that lie elsewhere in memory may take other kernels, which differ in the last digits.
        torch.testing.assert_close(stock(ids).logits, ours, rtol=1e-5, atol=1e-5)


def test_attention_is_left_alone_where_asked(runner: Runner, tmp_path: Path) -> None:
    report = runner("unstructured_pruner.attention=false", "sparsity=0.4", "save=true")
    source, written = (
        Checkpoint(Path(report["model"]["source"]), None),
        Checkpoint(tmp_path / "run/checkpoint", None),
    )
    before = {m.name: m.weight_OC for m in source.read_layer(1).matrices() if m.kind == "attention"}
    after = {m.name: m.weight_OC for m in written.read_layer(1).matrices() if m.kind == "attention"}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert report["sparsity"]["attention"] is False
    assert report["sparsity"]["achieved"] == pytest.approx(0.4, abs=0.001)


def test_whole_experts_alone_are_measured_and_explained(runner: Runner) -> None:
    """Without a second stage the total is what whole experts give: reported as measured, with a warning."""
    report = runner("unstructured_pruner=none", "sparsity=0.25", "expert_pruner.ratio=0.25")
    assert report["experts"]["ratio"] == pytest.approx(round(0.25 * 18) / 18)
    assert report["sparsity"]["achieved"] < 0.25
    assert any("unstructured_pruner=none" in warning for warning in report["warnings"])
    assert any("the allocation has no effect" in warning for warning in report["warnings"])


def test_checkpoint_goes_unless_saved(runner: Runner, tmp_path: Path) -> None:
    runner()
    assert not (tmp_path / "run/checkpoint").exists()
    assert (tmp_path / "run/report.json").exists()


def test_finished_checkpoint_is_not_overwritten(runner: Runner, tmp_path: Path) -> None:
    runner("save=true")
    with pytest.raises(ValueError, match="keeps a finished run's checkpoint"):
        runner("save=true", "seed=1")
    (tmp_path / "run/report.json").unlink()  # as if the first had been interrupted
    runner("save=true")
    assert (tmp_path / "run/report.json").exists()


def test_what_is_finished_is_not_done_again(runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor if another run of the same settings would lie in memory or in files; other settings are another run."""
    first = runner()
    (tmp_path / "run/checkpoint").mkdir()  # as if it had been stopped while it was deleted
    with monkeypatch.context() as context:
        context.setattr("stun_exp.pipeline.context.Journal", lambda *_: pytest.fail("a finished run went on"))
        assert runner("stream=out_of_core", "tracker=none") == first
    assert not (tmp_path / "run/checkpoint").exists()
    assert runner("name=other")["fingerprint"] != first["fingerprint"]


def test_a_finished_run_whose_checkpoint_is_gone_is_done_again(runner: Runner, tmp_path: Path) -> None:
    """Whatever keeps it, save=true or an export."""
    runner("save=true")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run/checkpoint").iterdir()}
    assert before
    rmtree(tmp_path / "run/checkpoint")
    report = runner("save=true")
    assert {file.name: file.read_bytes() for file in (tmp_path / "run/checkpoint").iterdir()} == before
    assert any("the run was finished, and this is gone; it is made again" in text for text in report["warnings"])


@pytest.mark.parametrize("name", ["model-00002-of-00004.safetensors", "config.json", "model.safetensors.index.json"])
def test_a_finished_run_that_lost_a_file_makes_it_again(runner: Runner, tmp_path: Path, name: str) -> None:
    runner("save=true")
    file = tmp_path / "run/checkpoint" / name
    content = file.read_bytes()
    file.unlink()
    runner("save=true")
    assert file.read_bytes() == content


@pytest.mark.parametrize("name", ["model-00002-of-00004.safetensors", "config.json"])
@pytest.mark.parametrize("cut", [2, None])
def test_a_finished_runs_file_that_was_changed_is_told_and_stays(
    runner: Runner, tmp_path: Path, name: str, cut: int | None
) -> None:
    """Cut to two bytes, or of the same size with another last byte: it was complete, and nothing was done."""
    runner("save=true")
    file = tmp_path / "run/checkpoint" / name
    content = file.read_bytes()[:cut] if cut else file.read_bytes()[:-2] + b"?\n"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: the run that finished here wrote"):
        runner("save=true")
    assert file.read_bytes() == content


def test_a_report_that_a_power_cut_emptied_is_written_again(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint was advised to be deleted; what the journal holds is all there."""
    runner("save=true")
    (tmp_path / "run/report.json").write_text("")
    monkeypatch.setattr("stun_exp.pipeline.prune.prune_layer_", lambda *_: pytest.fail("a layer was pruned again"))
    assert runner("save=true")["sparsity"]["achieved"]


def test_a_method_that_was_edited_makes_its_runs_anew(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was complete, and nothing was done."""
    first = runner()
    assert runner() == first
    edited = dict(first["provenance"]["code"]) | {"stun_exp.unstructured_pruner.wanda": "0" * 16}
    monkeypatch.setattr("stun_exp.state.fingerprint.digests", lambda modules: edited)
    assert runner()["fingerprint"] != first["fingerprint"]


def test_impossible_budgets_stop_before_any_weight(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "_read", lambda *args: pytest.fail("read weights"))
    with pytest.raises(ValueError, match=r"top_k=2.*at most 0\.6667"):
        runner("expert_pruner.ratio=0.8", "sparsity=0.85")
    with pytest.raises(ValueError, match=r"only 0\.\d+ of the weights in scope can be pruned"):
        runner("expert_pruner=none", "unstructured_pruner.attention=false", "sparsity=0.95")


def test_sequences_longer_than_the_model_takes_are_refused(runner: Runner) -> None:
    with pytest.raises(ValueError, match=r"sequence_length=65: the model takes at most 64 tokens"):
        runner("calibration.sequence_length=65")


def test_failed_run_leaves_no_report(runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stun_exp.pipeline.verify.prove_it_runs", lambda walk: (_ for _ in ()).throw(ValueError("NaN")))
    with pytest.raises(ValueError, match="NaN"):
        runner()
    assert not (tmp_path / "run/report.json").exists()
    assert not list((tmp_path / "run").glob("*.partial"))


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("4:8", 0.5), ("1:4", 0.5), ("3:8", 0.6)])
def test_a_pattern_takes_its_share_of_what_the_expert_stage_leaves(
    runner: Runner, pattern: str, sparsity: float
) -> None:
    """The total is then no setting: beside it the asked one is reported as missed, and by how much."""
    n, m = map(int, pattern.split(":"))
    asked = (f"sparsity={sparsity}", "expert_pruner.ratio=0.2", f"unstructured_pruner.pattern={pattern}")
    report = runner(*asked, "allocation=uniform")
    layers = report["sparsity"]["per_layer"]
    gone, everything = (sum(layer[key] for layer in layers) for key in ("removed", "weights_in_scope"))
    assert gone > 0
    assert report["sparsity"]["weights_ratio"] == n / m
    assert report["sparsity"]["achieved"] == pytest.approx((gone + (everything - gone) * n / m) / everything)
    (warning,) = (line for line in report["warnings"] if "pattern" in line)
    assert f"unstructured_pruner.pattern={pattern} takes {n / m} of what the expert stage leaves" in warning
    assert f"{report['sparsity']['achieved']:.4f}" in warning
    assert warning.endswith(f"not sparsity={sparsity}")


def test_a_pattern_alone_can_be_the_total(runner: Runner) -> None:
    report = runner("sparsity=0.5", "expert_pruner=none", "allocation=uniform", "unstructured_pruner.pattern=2:4")
    assert report["sparsity"]["achieved"] == 0.5
    assert report["warnings"] == []


def test_patterns_and_pruners_are_checked_and_budgeted_before_any_weight(
    runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner("unstructured_pruner=moe_pruner", "unstructured_pruner.pattern=4:8", "dry_run=true") == {}
    assert "weight stage      0.5000 of the " in capsys.readouterr().out
    assert runner("unstructured_pruner=magnitude", "unstructured_pruner.group=layer", "dry_run=true") == {}


def test_the_text_that_reached_each_expert_is_in_the_report(runner: Runner) -> None:
    """16 sequences of 32 tokens, two experts each; of the experts that the expert stage left."""
    report = runner("sparsity=0.4", "expert_pruner.ratio=0.2", "unstructured_pruner=moe_pruner")
    tokens = [layer["calibration_tokens"] for layer in report["sparsity"]["per_layer"]]
    assert [len(counts) for counts in tokens] == report["experts"]["after"]
    assert [sum(counts) for counts in tokens] == [2 * 16 * 32] * 3
    magnitude = runner("unstructured_pruner=magnitude")["sparsity"]["per_layer"]
    assert [layer["calibration_tokens"] for layer in magnitude] == [[], [], []]


def test_on_dense_inputs_a_run_at_more_sparsity_only_adds_zeros(runner: Runner, tmp_path: Path) -> None:
    """Whatever else is measured while a layer is pruned must not leak into what the next one sees."""
    dense = ("unstructured_pruner.inputs=dense", "expert_pruner=none", "allocation=uniform", "save=true")
    for percent in (30, 70):
        runner(*dense, f"sparsity=0.{percent}", out=tmp_path / str(percent))
    few, more = (Checkpoint(tmp_path / f"{percent}/checkpoint", None) for percent in (30, 70))
    for index in range(3):
        pairs = zip(few.read_layer(index).matrices(), more.read_layer(index).matrices(), strict=True)
        assert all(bool((larger.weight_OC == 0)[smaller.weight_OC == 0].all()) for smaller, larger in pairs)


@pytest.mark.parametrize("starved", ["every_token", "shared", "magnitude", "dense"])
def test_starved_expert_is_named_in_the_report(
    runner: Runner, tiny_model: Callable[[str], Path], tmp_path: Path, starved: str
) -> None:
    """With its layer and what was done instead; the total is met all the same, by whatever takes its place."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model("mixtral"))
    # Two pairs of opposite rows: whatever the token, two logits are above the zero of expert 4.
    rows = model.model.layers[1].mlp.gate.weight.data
    rows[0], rows[1], rows[2], rows[3] = 50 * rows[5], -50 * rows[5], 50 * rows[5], -50 * rows[5]
    rows[4] = 0
    folder = tmp_path / "starved"
    shutil.copytree(tiny_model("mixtral"), folder)
    model.save_pretrained(folder)
    report = runner(f"model.path={folder}", "expert_pruner=none", f"unstructured_pruner.starved={starved}")
    (warning,) = (warning for warning in report["warnings"] if "starved" in warning)
    assert warning.startswith("layer 1: fewer than unstructured_pruner.min_tokens=1 ")
    assert " reached expert 4, 5 (" in warning  # 5 is fifty times below the larger of the pair around it
    assert f"starved={starved} applies" in warning
    assert report["sparsity"]["per_layer"][1]["calibration_tokens"][4] == 0
    assert report["sparsity"]["achieved"] == pytest.approx(0.4, abs=1e-3)


def test_a_run_that_could_not_be_tracked_is_not_lost_and_is_tracked_later(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second time it is finished, and only handed to the tracker; a dry run has nothing to hand over."""
    tracked: list[tuple[Path, str | None]] = []

    def broken(self: object, out: Path, sweep: str | None) -> None:
        tracked.append((out, sweep))
        raise ConnectionError("no route to host")

    monkeypatch.setattr("stun_exp.tracker.wandb.WandB.track", broken)
    report = runner("tracker=wandb")
    assert "no route to host" in capsys.readouterr().err
    assert (tmp_path / "run/metrics.json").exists()
    when = (tmp_path / "run/report.json").stat().st_mtime_ns
    runner("tracker=wandb", "dry_run=true")
    assert runner("tracker=wandb") == report
    assert (tmp_path / "run/report.json").stat().st_mtime_ns == when
    assert tracked == [(tmp_path / "run", None)] * 2


def test_skipping_after_pruning_is_in_the_figures_and_the_report(runner: Runner, tmp_path: Path) -> None:
    others = [f"~eval.benchmarks.toy_{name}" for name in ("gsm8k", "arc", "hellaswag", "mmlu")]
    pruned = ("sparsity=0.4", "expert_pruner.ratio=0.2", "eval=toy", *others, "eval.limit=2")
    plain = runner(*pruned)
    report = runner(*pruned, "skipping=dynamic", "save=true", out=tmp_path / "skipping")
    assert plain["skipping"] is None
    assert plain["cost"]["skip"]["forward_passes"] == 0
    assert plain["sparsity"] == report["sparsity"]
    assert plain["metrics"] != report["metrics"]
    skipping = report["skipping"]
    assert skipping["calibration"] == pytest.approx(0.25)
    assert 0 < skipping["evaluation"] < 0.5
    assert [layer["layer"] for layer in skipping["per_layer"]] == [0, 1, 2]
    assert all(0 < layer["beta"] < 1 for layer in skipping["per_layer"])
    assert report["cost"]["skip"]["forward_passes"] == 1
    assert any("the written checkpoint does not skip" in warning for warning in report["warnings"])
    assert not any("skip" in warning for warning in plain["warnings"])


def test_skipping_alone_prunes_nothing_and_says_that_nothing_is_measured(runner: Runner) -> None:
    report = runner("method=unpruned", "skipping=dynamic", "eval=none", family="qwen2_moe")
    assert report["sparsity"]["achieved"] == 0
    assert [layer["layer"] for layer in report["skipping"]["per_layer"]] == [1, 2]  # layer 0 is dense
    assert report["skipping"]["evaluation"] is None
    assert any("skipping has no effect on any figure" in warning for warning in report["warnings"])
    assert not any("does not skip" in warning for warning in report["warnings"])


def test_a_top_1_router_stops_before_any_weight(
    runner: Runner, tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_model("mixtral"), tmp_path / "top_1"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_experts_per_tok": 1}))
    monkeypatch.setattr(Checkpoint, "_read", lambda *args: pytest.fail("read weights"))
    with pytest.raises(ValueError, match=r"top_k=1.*pass skipping=none"):
        runner(f"model.path={folder}", "skipping=dynamic")


def test_a_pattern_that_does_not_fit_is_refused_before_anything_is_run(runner: Runner, tmp_path: Path) -> None:
    """Hidden size 16, expert width 24: found by a dry run, and not after the experts were chosen."""
    with pytest.raises(ValueError, match=r"pattern=4:16: 16 neighbors do not divide the 24 inputs of layer 0's mlp"):
        runner("unstructured_pruner.pattern=4:16", "dry_run=true")


@pytest.mark.parametrize(
    ("override", "why"),
    [("model.load=nf4", "whatever stream.experts says"), ("expert_pruner=m_smoe", "merged experts are put together")],
)
def test_what_lies_in_memory_all_the_same_is_told(override: str, why: str, runner: Runner) -> None:
    common = ("expert_pruner.ratio=0.25", "sparsity=0.4")
    told = runner(override, *common, "stream=out_of_core", "name=files")["warnings"]
    assert [warning for warning in told if why in warning]
    assert not [w for w in runner(override, *common, "name=memory")["warnings"] if why in w]
