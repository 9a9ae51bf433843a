"""The stage that measures models in use: what it leaves in the report, and what it is refused for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Runner = Callable[..., dict[str, Any]]
SMALL = [
    *("inference=measure", "inference.batch_sizes=[1,2]", "inference.prompt_tokens=8", "inference.new_tokens=3"),
    "inference.repeats=2",
]


def test_the_report_has_both_models_side_by_side(runner: Runner, tmp_path: Path) -> None:
    report = runner("method=stun_wanda", "sparsity=0.4", *SMALL)
    block = report["inference"]
    assert [model["name"] for model in block["models"]] == ["unpruned", "pruned"]
    before, after = block["models"]
    assert after["parameters"] == report["model"]["params_after"] < before["parameters"]
    assert after["num_experts"] == sum(report["experts"]["after"]) / 3
    assert before["freed_bytes"] == 0 < after["freed_tokens"]
    assert block["workload"] == {"batch_sizes": [1, 2], "prompt_tokens": 8, "new_tokens": 3, "repeats": 2}
    assert report["cost"]["inference"]["wall_seconds"] > 0
    assert not (tmp_path / "run" / "checkpoint").exists()  # measured before it went


def test_it_is_off_unless_asked_for(runner: Runner) -> None:
    assert runner("method=magnitude", "sparsity=0.4")["inference"] is None


def test_what_cannot_be_measured_is_refused_before_anything_is_pruned(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"inference.prompt_tokens=64 and inference.new_tokens=3: .* at most 64"):
        runner("method=magnitude", "sparsity=0.4", *SMALL, "inference.prompt_tokens=64")
    assert not (tmp_path / "run" / "journal.jsonl").exists()


def test_a_finished_run_is_not_measured_again(runner: Runner, tmp_path: Path) -> None:
    first = runner("method=magnitude", "sparsity=0.4", *SMALL)
    assert runner("method=magnitude", "sparsity=0.4", *SMALL) == first
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == first
