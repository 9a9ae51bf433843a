"""What a stage cost, and files that are whole or not there."""

import errno
import json
import time
from pathlib import Path

import pytest
import torch

from stun_exp.report.ledger import Ledger, provenance, write_json

CPU = torch.device("cpu")


def test_a_stage_is_timed_and_its_memory_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """The peak falls again after a large stage: a process-wide peak would charge it to every later one."""
    ledger = Ledger(CPU)
    with ledger.stage("large"):
        ballast = torch.ones(64 * 2**20)  # 256 MiB, touched
        time.sleep(0.02)
        del ballast
    with ledger.stage("small") as cost:
        cost.forward_passes = 2.0
    cost_of = ledger.cost()
    assert list(cost_of) == ["large", "small"]
    assert cost_of["large"]["wall_seconds"] >= 0.02
    assert cost_of["large"]["peak_host_gib"] - cost_of["small"]["peak_host_gib"] > 0.2
    assert cost_of["small"]["forward_passes"] == 2.0
    assert cost_of["small"]["peak_device_gib"] is None
    assert "large" in capsys.readouterr().err


def test_a_failed_stage_is_not_in_the_report() -> None:
    ledger = Ledger(CPU)
    with pytest.raises(ValueError, match="no"), ledger.stage("failed"):
        raise ValueError("no")
    assert ledger.cost() == {}


def test_a_warning_is_said_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(CPU)
    ledger.warn("expert 3 [starved]")
    assert ledger.warnings == ["expert 3 [starved]"]
    assert "expert 3 [starved]" in capsys.readouterr().err.replace("\n", " ")


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.json"
    write_json(file, {"run": 1})

    def full(self: Path, text: str) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"report\.json: could not be written \(No space left.*hydra\.run\.dir=DIR"):
        write_json(file, {"run": 2})
    assert json.loads(file.read_text()) == {"run": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_provenance_names_versions_device_and_tokens() -> None:
    found = provenance(CPU, "abc")
    assert found["versions"]["torch"] == torch.__version__
    assert {"transformers", "lm-eval", "datasets", "python"} <= found["versions"].keys()
    assert found["device"].startswith("cpu")
    assert found["calibration_tokens_sha256"] == "abc"
