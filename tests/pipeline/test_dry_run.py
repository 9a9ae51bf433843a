"""A dry run of a model that is not on this machine, and what it says to be missing."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stun_exp.data.hub import why_unreachable
from stun_exp.pipeline import dry_run

RunWith = Callable[..., dict[str, Any]]
# Mixtral-8x7B by hand: q and o are square, k and v a quarter; an expert is three matrices.
ATTENTION = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024)
EXPERTS = 32 * 8 * 3 * 4096 * 14336
LAYER_EXPERTS = 3 * 4096 * 14336


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, a hub that must not be asked, and nothing said yet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    dry_run._said.clear()
    why_unreachable.cache_clear()
    yield tmp_path / "hub"
    dry_run._said.clear()
    why_unreachable.cache_clear()


PAPER = ("model=mixtral_8x7b", "model.device=cpu", "calibration=c4", "eval=paper")


def test_the_budget_is_printed_by_the_card_and_what_is_missing_is_said_once(
    run_with: RunWith, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not again for the next point of a sweep, and of another model that model alone."""
    said = []
    for model in ("mixtral_8x7b", "mixtral_8x7b", "mixtral_8x7b_instruct"):
        run_with(tmp_path / "run", *PAPER, f"model={model}", "expert_pruner.ratio=0.125", "dry_run=true")
        printed = capsys.readouterr()
        assert f"weights in scope  {ATTENTION + EXPERTS:,}" in printed.out
        assert f"expert stage      {32 * LAYER_EXPERTS:,} weights" in printed.out
        assert "calibration       262,144 tokens" in printed.out
        assert "by the card's dimensions" in printed.out
        said.append(printed.err)
    for name in ("Mixtral-8x7B-v0.1", "openai/gsm8k (main)", "cais/mmlu", "allenai/c4 (en/c4-train.00000"):
        assert name in said[0]
    assert "not on this machine" not in said[1]
    assert "Mixtral-8x7B-Instruct-v0.1" in said[2]
    assert "gsm8k" not in said[2]


def test_what_the_card_rules_out_is_refused(run_with: RunWith, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sequence_length=40000: the model takes at most 32768"):
        run_with(tmp_path / "run", *PAPER, "calibration.sequence_length=40000", "dry_run=true")


def test_a_run_of_a_model_that_is_not_here_is_told_all_that_is_missing(run_with: RunWith, tmp_path: Path) -> None:
    """Model, benchmarks and text in one error, so that one fetch is enough."""
    with pytest.raises(ValueError, match="not on this machine") as refused:
        run_with(tmp_path / "run", *PAPER)
    first = str(refused.value).splitlines()[0]
    for name in ("mistralai/Mixtral-8x7B-v0.1", "openai/gsm8k", "allenai/ai2_arc", "allenai/c4"):
        assert name in first


def test_a_dry_run_of_a_model_that_is_here_is_refused_for_missing_data(run_with: RunWith, tmp_path: Path) -> None:
    """It checks what the run would find."""
    with pytest.raises(ValueError, match=r"not on this machine: openai/gsm8k \(main\)"):
        run_with(tmp_path / "run", "model=toy_moe", "model.device=cpu", "eval=gsm8k", "dry_run=true")
