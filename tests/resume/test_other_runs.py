"""What a folder with an unfinished run refuses, and what it lets pass."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from stun_exp.state import fingerprint
from stun_exp.state.lock import run_lock

Go = Callable[..., dict[str, Any]]
Content = Callable[[Path], dict[str, bytes]]


def everything(folder: Path) -> dict[Path, bytes]:
    """All that a folder holds, but for the lock's file, which says who was there last."""
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != "run.lock"}


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("sparsity=0.6", "sparsity: 0.5 -> 0.6"),
        ("unstructured_pruner.inputs=dense", "unstructured_pruner.inputs: pruned -> dense"),
        ("unstructured_pruner=magnitude", r"unstructured_pruner._target_: stun_exp.* -> stun_exp.*Magnitude; "),
        ("calibration.num_sequences=15", r"num_sequences: 16 -> 15; .*calibration tokens: \w+ -> \w+"),
        ("seed=1", r"seed: 0 -> 1; calibration tokens: \w+ -> \w+"),
    ],
)
def test_another_setting_is_refused_and_nothing_is_touched(
    interrupted: Path, go: Go, change: str, difference: str
) -> None:
    before = everything(interrupted)
    with pytest.raises(ValueError, match=f"holds an interrupted run that differs: .*{difference}.*resume=restart"):
        go(change)
    assert everything(interrupted) == before


def test_other_text_under_the_same_name_is_refused(interrupted: Path, go: Go, tmp_path: Path) -> None:
    text = tmp_path / "calibration.jsonl"
    text.write_text(text.read_text().replace("1", "2"))
    with pytest.raises(ValueError, match=r"differs: calibration tokens: \w+ -> \w+; go on as it was begun"):
        go()


def test_restart_throws_away_what_was_done(
    interrupted: Path, go: Go, prunings: list[int], content: Content, tmp_path: Path
) -> None:
    report = go("sparsity=0.6", "resume=restart")
    assert prunings == [0, 1, 2]
    assert report["sparsity"]["achieved"] == pytest.approx(0.6, abs=0.001)
    go("sparsity=0.6", out=tmp_path / "whole")
    assert content(interrupted / "checkpoint") == content(tmp_path / "whole/checkpoint")


def test_restart_helps_against_a_damaged_journal(interrupted: Path, go: Go, prunings: list[int]) -> None:
    journal = interrupted / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"stage": "allocate"', b'"stage": "allocate'))
    with pytest.raises(ValueError, match=r"journal\.jsonl, line 6: damaged; pass resume=restart"):
        go()
    go("resume=restart")
    assert prunings == [0, 1, 2]


def test_settings_without_effect_on_the_weights_may_change(interrupted: Path, go: Go, prunings: list[int]) -> None:
    others = [f"~eval.benchmarks.toy_{name}" for name in ("gsm8k", "arc", "hellaswag", "mmlu")]
    report = go("name=other", "eval=toy", *others, "eval.limit=2", "skipping=dynamic")
    assert prunings == [2]
    assert report["metrics"]
    assert report["name"] == "other"


def test_a_dry_run_touches_nothing(interrupted: Path, go: Go) -> None:
    before = everything(interrupted)
    go("dry_run=true", "sparsity=0.6")
    assert everything(interrupted) == before


def test_costs_are_those_of_all_starts(interrupted: Path, go: Go, tmp_path: Path) -> None:
    """A pass to choose, one to allocate, two to prune; and one more for the two layers that only fed the third."""
    whole, resumed = go(out=tmp_path / "whole")["cost"], go()["cost"]
    for stage, passes in {"experts": 1, "allocate": 1, "prune": 2}.items():
        assert whole[stage]["forward_passes"] == pytest.approx(passes)
        assert resumed[stage]["forward_passes"] == pytest.approx(passes + (stage == "prune") * 2 / 3)
        assert resumed[stage]["wall_seconds"] > 0.01


def test_the_second_of_two_processes_is_told_and_stops(
    interrupted: Path, go: Go, in_child: Callable[..., Callable[[], int]]
) -> None:
    def hold() -> None:
        with run_lock(interrupted):
            (interrupted.parent / "held").touch()
            while (interrupted.parent / "held").exists():
                time.sleep(0.01)

    first = in_child(hold)
    while not (interrupted.parent / "held").exists():
        time.sleep(0.01)
    before = everything(interrupted)
    pid, host = first.pid, socket.gethostname()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=rf"{interrupted}: process {pid} on {host} is at work there; wait"):
        go("resume=restart")
    assert everything(interrupted) == before
    (interrupted.parent / "held").unlink()
    assert first() == 0
    go()


def test_the_lock_of_a_dead_process_is_no_obstacle(interrupted: Path, go: Go) -> None:
    holder = json.loads((interrupted / "run.lock").read_text())
    assert holder["pid"] != os.getpid()
    go()
    assert json.loads((interrupted / "run.lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("edited", "decided_again", "layers"),
    [
        ("unstructured_pruner.wanda", ["allocate"], [0, 1, 2]),  # OWL goes by its saliencies
        ("pipeline.prune_layer", [], [0, 1, 2]),
        ("expert_pruner.stun.stun", ["experts", "allocate"], [0, 1, 2]),
        ("evaluation.harness", [], [2]),
    ],
)
def test_what_other_code_has_made_is_made_again_and_no_more(
    edited: str,
    decided_again: list[str],
    layers: list[int],
    interrupted: Path,
    go: Callable[..., dict[str, Any]],
    decided: list[str],
    prunings: list[int],
    undisturbed: Path,
    content: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The code of a module is another when the run goes on; what it gives is not, so the bytes stay."""
    original = fingerprint.digests

    def digests(modules: Iterable[str]) -> dict[str, str]:
        found = original(modules)
        return found | {name: "0" * 16 for name in found if name == f"stun_exp.{edited}"}

    for place in ("state.fingerprint", "pipeline.context"):
        monkeypatch.setattr(f"stun_exp.{place}.digests", digests)
    decided.clear()
    prunings.clear()
    report = go()
    assert (decided, prunings) == (decided_again, layers)
    told = [text for text in report["warnings"] if "changed since the run was interrupted" in text]
    assert [f"stun_exp.{edited}: " in text for text in told] == ([] if edited == "evaluation.harness" else [True])
    assert content(interrupted / "checkpoint") == content(undisturbed)
