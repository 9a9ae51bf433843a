"""`stun speed`: which words are runs and models, what it prints, and what it says of places that are neither."""

import sys
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

from stun_exp.cli import speed
from stun_exp.cli.main import CONF, main
from stun_exp.cli.speed import is_place, subjects

Stun = Callable[..., tuple[int, str, str]]
SMALL = ["inference.batch_sizes=[1,2]", "inference.prompt_tokens=8", "inference.new_tokens=3", "inference.repeats=2"]


@pytest.fixture
def stun(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Stun:
    """Runs the command in an empty folder: (exit code, what it printed, what it said on stderr)."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stun", "speed", *argv])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def kept(runner: Callable[..., dict[str, Any]], tmp_path: Path) -> Path:
    """A finished run with its checkpoint, in a folder that is named as those of a sweep are."""
    out = tmp_path / "method=stun_wanda"
    runner("method=stun_wanda", "sparsity=0.4", "save=true", out=out)
    return out


def test_a_run_is_measured_beside_the_model_that_its_report_names(stun: Stun, kept: Path) -> None:
    """On the run's own text, with the folder's = in its name."""
    code, printed, said = stun(str(kept), *SMALL)
    assert (code, said) == (0, "")
    head = printed.splitlines()[1].split("  ")
    assert [word.strip() for word in head if word.strip()] == ["unpruned", "pruned", "pruned, zeros filled in"]
    for measure in ("on disk", "weights in memory", "zeros in matrices", "more tokens in the KV cache"):
        assert measure in printed
    for size in (1, 2):
        assert f"prefill tokens/s, batch {size}" in printed
        assert f"decode tokens/s, batch {size}" in printed
    assert "(not realized)" in printed
    assert "Zeros by themselves give no speed here" in printed
    assert list(Path.cwd().iterdir()) == []  # no run's directory


def test_models_are_compared_with_the_first(stun: Stun, kept: Path, tiny_model: Callable[[str], Path]) -> None:
    text = next(iter(kept.parent.glob("*.jsonl")))
    local = ["calibration=local", f"calibration.path={text}"]
    code, printed, said = stun(str(tiny_model("mixtral")), str(kept / "checkpoint"), *local, *SMALL)
    assert (code, said) == (0, "")
    assert f"factors are to {tiny_model('mixtral')}" in " ".join(printed.split())


def test_a_runs_own_model_and_text_are_taken_unless_others_are_chosen(
    kept: Path, tiny_model: Callable[[str], Path]
) -> None:
    settings, found = subjects([str(kept)], ["model.device=cpu"], CONF)
    assert settings.model.path == str(tiny_model("mixtral"))
    assert settings.model.device == "cpu"
    assert type(settings.calibration).__name__ == "LocalText"
    assert list(found) == ["unpruned", "pruned"]
    assert found["pruned"].path == kept / "checkpoint"
    settings, _ = subjects([str(kept)], ["calibration=toy", "calibration.domain=maths"], CONF)
    assert type(settings.calibration).__name__ == "ToyText"


def test_runs_of_one_model_share_it(kept: Path) -> None:
    _, found = subjects([str(kept), str(kept / "checkpoint")], [], CONF)
    assert list(found) == ["unpruned", str(kept), str(kept / "checkpoint")]


def test_words_with_an_equals_sign_are_settings_unless_they_are_there(kept: Path) -> None:
    assert is_place(str(kept))
    assert is_place("toy_moe")
    assert is_place("owner/name")
    assert not is_place("inference.repeats=2")
    assert not is_place("--help")
    assert not is_place("calibration.path=" + 400 * "x")


def test_a_run_that_kept_no_checkpoint_says_how_to_keep_it(stun: Stun, kept: Path) -> None:
    rmtree(kept / "checkpoint")
    code, printed, said = stun(str(kept))
    assert (code, printed) == (1, "")
    assert len(said.splitlines()) == 1
    assert "kept no checkpoint (save=false); run it again with save=true" in said


def test_a_run_that_is_not_finished_says_so(stun: Stun, kept: Path) -> None:
    (kept / "report.json").unlink()
    code, _, said = stun(str(kept))
    assert code == 1
    assert "is not finished" in said


def test_a_folder_that_is_no_model_is_one_line(stun: Stun, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, printed, said = stun(str(tmp_path / "empty"))
    assert (code, printed) == (1, "")
    assert len(said.splitlines()) == 1
    assert "neither a run (no report.json) nor a model (no config.json)" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no run and no model given"),
        (["inference.repeats=3"], "no run and no model given"),
        (["toy_moe", "inference.repeat=3"], "inference.repeat"),
        (["toy_moe", "inference=none"], "inference"),
        (["toy_moe", "inference.repeats=1"], "inference.repeats"),
        (["toy_moe", "inference.vllm_python=/nowhere"], "inference.vllm_python=/nowhere: no program is there"),
    ],
)
def test_mistakes_are_answered_before_anything_is_loaded(words: list[str], said: str, stun: Stun) -> None:
    code, printed, told = stun(*words)
    assert (code, printed) == (2, "")
    assert said in told
    assert "nothing was run" in told


def test_help_says_how(stun: Stun) -> None:
    for flag in ("--help", "-h"):
        code, printed, _ = stun(flag, "nonsense")
        assert (code, printed) == (0, speed.HELP)
