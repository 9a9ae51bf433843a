"""The Python API does what the command does, and leaves the process as it was."""

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import stun_exp
from stun_exp.api import _specs
from stun_exp.config.build import ConfigError

Settings = dict[str, object]


@pytest.fixture
def mixtral_path(tiny_model: Callable[[str], Path]) -> Path:
    return tiny_model("mixtral")


@pytest.fixture
def quick(tmp_path: Path, mixtral_path: Path) -> Settings:
    """Settings with which a tiny model is pruned in a second."""
    rows = torch.randint(1, 64, (40, 40), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "text.jsonl").write_text("\n".join(f'{{"input_ids": {row}}}' for row in rows))
    return {
        "calibration": "local",
        "calibration.path": str(tmp_path / "text.jsonl"),
        "calibration.num_sequences": 8,
        "calibration.sequence_length": 32,
        "calibration.batch_size": 4,
        "expert_pruner.ratio": 0.2,
        "eval": "none",
        "cache": "none",
        "save": True,
    }


def shards(folder: Path) -> dict[str, bytes]:
    found = {file.name: file.read_bytes() for file in (folder / "checkpoint").glob("*.safetensors")}
    assert found
    return found


def test_a_model_in_a_folder_is_pruned(mixtral_path: Path, quick: Settings, tmp_path: Path) -> None:
    report = stun_exp.prune(mixtral_path, out=tmp_path / "run", sparsity=0.5, settings=quick)
    assert report.sparsity == pytest.approx(0.5, abs=0.001)
    assert report.content["experts"]["ratio"] == pytest.approx(0.2, abs=0.03)
    assert report.checkpoint is not None
    model = stun_exp.load_pruned(report.checkpoint)
    assert any(bool((weight == 0).sum()) for weight in model.parameters())
    # The same call goes on with the same run, which is complete.
    again = stun_exp.prune(mixtral_path, out=tmp_path / "run", sparsity=0.5, settings=quick)
    assert again == report


def test_it_is_what_the_command_leaves(
    mixtral_path: Path, quick: Settings, tmp_path: Path, run_with: Callable[..., dict[str, object]]
) -> None:
    """The bytes of the pruned weights, and the plan."""
    stun_exp.prune(mixtral_path, out=tmp_path / "api", sparsity=0.5, settings=quick)
    typed = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in quick.items()]
    run_with(tmp_path / "command", f"model.path={mixtral_path}", "sparsity=0.5", *typed)
    assert shards(tmp_path / "api") == shards(tmp_path / "command")
    plans = [(tmp_path / name / "plan.json").read_text() for name in ("api", "command")]
    assert plans[0] == plans[1]


def test_settings_are_given_as_keywords_or_nested(mixtral_path: Path, quick: Settings, tmp_path: Path) -> None:
    nested = {**quick, "unstructured_pruner": "magnitude", "expert_pruner": {"lambda2": 0.0}}
    report = stun_exp.prune(mixtral_path, out=tmp_path / "a", sparsity=0.5, settings=nested, allocation="uniform")
    settings = report.content["settings"]
    assert settings["unstructured_pruner"]["_target_"].endswith("Magnitude")
    assert settings["allocation"]["_target_"].endswith("Uniform")
    assert (settings["expert_pruner"]["lambda2"], settings["expert_pruner"]["ratio"]) == (0.0, 0.2)


def test_several_sparsities_are_several_reports(mixtral_path: Path, quick: Settings, tmp_path: Path) -> None:
    reports = stun_exp.prune(mixtral_path, out=tmp_path / "run", sparsity=[0.4, 0.6], settings=quick)
    assert [round(report.sparsity, 2) for report in reports] == [0.4, 0.6]
    assert [report.folder.name for report in reports] == ["sparsity=0.4", "sparsity=0.6"]


def test_several_sparsities_among_the_settings_are_several_reports_too(
    mixtral_path: Path, quick: Settings, tmp_path: Path
) -> None:
    """Of two runs the first one's report was given, and the other kept silent."""
    reports = stun_exp.prune(mixtral_path, out=tmp_path / "run", settings={**quick, "sparsity": [0.4, 0.6]})
    assert isinstance(reports, list)
    assert [round(report.sparsity, 2) for report in reports] == [0.4, 0.6]


def test_a_model_in_memory_is_not_saved_for_settings_that_are_wrong(
    mixtral_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = stun_exp.load_pruned(mixtral_path), AutoTokenizer.from_pretrained(mixtral_path)
    monkeypatch.setattr(type(model), "save_pretrained", lambda *_: pytest.fail("it was saved"))
    with pytest.raises(ConfigError, match="sparsty: no such setting"):
        stun_exp.prune(model, tokenizer=tokenizer, out=tmp_path / "run", sparsty=0.5)
    assert not (tmp_path / "run").exists()


def test_a_model_in_memory_is_pruned_like_that_on_disk(mixtral_path: Path, quick: Settings, tmp_path: Path) -> None:
    """It is on disk for the time of the run alone."""
    stun_exp.prune(mixtral_path, out=tmp_path / "disk", sparsity=0.5, settings=quick)
    model, tokenizer = stun_exp.load_pruned(mixtral_path), AutoTokenizer.from_pretrained(mixtral_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stun_exp.prune(model, tokenizer=tokenizer, out=tmp_path / "memory", sparsity=0.5, settings=quick)
    ours, theirs = shards(tmp_path / "memory"), shards(tmp_path / "disk")
    assert ours.keys() == theirs.keys()
    assert stun_exp.load_pruned(tmp_path / "memory/checkpoint").state_dict().keys() == before.keys()
    for name, tensor in stun_exp.load_pruned(tmp_path / "memory/checkpoint").state_dict().items():
        assert torch.equal(tensor, stun_exp.load_pruned(tmp_path / "disk/checkpoint").state_dict()[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not (tmp_path / "memory/source").exists()


def test_a_folder_of_somebody_s_is_not_taken_for_the_model_in_memory(
    mixtral_path: Path, quick: Settings, tmp_path: Path
) -> None:
    (tmp_path / "run/source").mkdir(parents=True)
    (tmp_path / "run/source/mine").write_text("mine")
    tokenizer = AutoTokenizer.from_pretrained(mixtral_path)
    with pytest.raises(ValueError, match="source: is there, and the model is to be saved there; move it away"):
        stun_exp.prune(stun_exp.load_pruned(mixtral_path), tokenizer=tokenizer, out=tmp_path / "run", settings=quick)
    assert (tmp_path / "run/source/mine").read_text() == "mine"


def test_every_mistake_is_told_as_on_the_command_line(mixtral_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        stun_exp.prune(mixtral_path, out=tmp_path / "run", sparsty=0.5, expert_pruner="stn", seed=-1)
    assert len(error.value.mistakes) == 3
    assert any(
        line.startswith("expert_pruner=stn: no such choice; did you mean stun?") for line in error.value.mistakes
    )
    assert "sparsty: no such setting; did you mean sparsity?" in error.value.mistakes
    assert "seed=-1: must be at least 0" in error.value.mistakes
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["it's", "a\\b", "a\\", "x=1", "1", "null", "a b"])
def test_text_is_text(name: str, mixtral_path: Path, tmp_path: Path) -> None:
    """Whatever it would mean where commands are typed."""
    (spec,), _ = _specs({"model": "local", "model.path": str(mixtral_path), "name": name}, tmp_path / "run")
    assert spec.settings.name == name


def test_a_tokenizer_goes_with_a_model_in_memory_alone(mixtral_path: Path, tmp_path: Path) -> None:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(mixtral_path)
    with pytest.raises(ValueError, match="tokenizer: is for a model in memory"):
        stun_exp.prune(mixtral_path, out=tmp_path / "run", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="tokenizer: required with a model in memory"):
        stun_exp.prune(stun_exp.load_pruned(mixtral_path), out=tmp_path / "run")


def test_nothing_of_the_process_is_changed(mixtral_path: Path, quick: Settings, tmp_path: Path) -> None:
    """Who prunes in a notebook, or in an application of Hydra's, goes on as before."""

    def state() -> list[object]:
        root, ours = logging.getLogger(), logging.getLogger("stun_exp")
        return [
            dict(os.environ),
            os.getcwd(),
            [(one.level, list(one.handlers), one.propagate) for one in (root, ours)],
            list(warnings.filters),
            GlobalHydra.instance().hydra,
            HydraConfig.instance().cfg,
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_rng_state().tolist(),
        ]

    stun_exp.inspect(mixtral_path)  # whatever libraries do on their first use
    before = state()
    stun_exp.prune(mixtral_path, out=tmp_path / "run", sparsity=0.5, settings=quick)
    after = state()
    assert before == after


def test_the_model_is_told_without_its_weights(mixtral_path: Path) -> None:
    facts = stun_exp.inspect(mixtral_path, sparsity_scope="experts")
    assert facts.sizes.moe[0].num_experts == 6
    assert facts.needs.pruning_bytes > 0
    assert "sparsity_scope of this run" in str(facts)
    assert str(facts).endswith("no weights were read")


def test_a_folder_without_a_report_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"report\.json"):
        stun_exp.read_report(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="is no report as this version writes it"):
        stun_exp.read_report(tmp_path)


def test_importing_it_is_light() -> None:
    import subprocess
    import sys

    heavy = "[name for name in ('torch', 'transformers', 'hydra', 'pandas', 'pydantic') if name in sys.modules]"
    code = f"import sys, stun_exp; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
