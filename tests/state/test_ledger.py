"""What a stage cost, and files that are whole or not there."""

import errno
import json
import math
import os
import re
import subprocess
import time
from math import inf, nan
from pathlib import Path

import pytest
import torch

from stun_exp.evaluation.harness import Sample
from stun_exp.state import ledger
from stun_exp.state.ledger import Ledger, provenance, write_json, write_samples
from stun_exp.utils.json_files import with_numbers

CPU = torch.device("cpu")


def test_a_stage_is_timed_and_its_memory_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """The peak falls again after a large stage: a process-wide peak would charge it to every later one."""
    found = Ledger(CPU)
    with found.stage("large"):
        ballast = torch.ones(64 * 2**20)  # 256 MiB, touched
        time.sleep(0.02)
        del ballast
    with found.stage("small") as cost:
        cost.forward_passes = 2.0
    cost_of = found.cost()
    assert list(cost_of) == ["large", "small"]
    assert cost_of["large"]["wall_seconds"] >= 0.02
    assert cost_of["large"]["peak_host_gib"] - cost_of["small"]["peak_host_gib"] > 0.2
    assert cost_of["small"]["forward_passes"] == 2.0
    assert cost_of["small"]["peak_device_gib"] is None
    assert "large" in capsys.readouterr().err


def test_a_failed_stage_is_not_in_the_report() -> None:
    found = Ledger(CPU)
    with pytest.raises(ValueError, match="no"), found.stage("failed"):
        raise ValueError("no")
    assert found.cost() == {}


def test_a_warning_is_said_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    found = Ledger(CPU)
    found.warn("expert 3 [starved]")
    assert found.warnings == ["expert 3 [starved]"]
    assert "expert 3 [starved]" in capsys.readouterr().err.replace("\n", " ")


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.json"
    write_json(file, {"run": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"report\.json: could not be written \(No space left"):
        write_json(file, {"run": 2})
    assert json.loads(file.read_text()) == {"run": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_json_is_strict_and_reads_back(tmp_path: Path) -> None:
    """Perplexity after heavy pruning is really infinite, and JSON has no word for it."""
    report = {"name": "NaN", "metrics": {"a": {"value": inf, "stderr": None}}, "x": [nan, -inf, 0.1], "y": (1, True)}
    write_json(tmp_path / "report.json", report)
    write_samples(tmp_path / "samples.jsonl", [Sample("t", "t", "m", 0, "h", value) for value in (inf, nan)])

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert content["metrics"]["a"]["value"] == "Infinity"
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse)["value"] for line in lines] == ["Infinity", "NaN"]
    assert all(math.isinf(float(text)) for text in ("Infinity", "-Infinity"))
    again = with_numbers(content)
    assert again["name"] == "NaN"
    assert again["metrics"] == report["metrics"]
    assert math.isnan(again["x"][0])
    assert again["x"][1:] == [-inf, 0.1]
    assert again["y"] == [1, True]


def test_the_commit_is_that_of_a_checkout_and_not_of_a_repository_around_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "venv" / "ledger.py"
    installed.parent.mkdir()
    installed.touch()
    monkeypatch.setattr(ledger, "__file__", str(installed))
    commit = ["-c", "user.name=a", "-c", "user.email=a", "commit", "--quiet", "--allow-empty", "--message=theirs"]
    assert provenance(CPU, "abc")["git_commit"] is None
    for command in (["init", "--quiet"], commit):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert provenance(CPU, "abc")["git_commit"] is None
    subprocess.run(["git", "add", "venv"], cwd=tmp_path, check=True)
    assert re.fullmatch("[0-9a-f]{40}-dirty", provenance(CPU, "abc")["git_commit"])


def test_provenance_names_versions_device_and_tokens() -> None:
    found = provenance(CPU, "abc")
    assert found["versions"]["torch"] == torch.__version__
    assert {"transformers", "lm-eval", "datasets", "python"} <= found["versions"].keys()
    assert found["device"].startswith("cpu")
    assert found["calibration_tokens_sha256"] == "abc"
    assert found["threads"] == torch.get_num_threads()
    assert torch.backends.cpu.get_cpu_capability() in found["processor"]
