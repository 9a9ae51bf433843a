"""Weights & Biases, offline."""

import json
from pathlib import Path
from typing import Any

import pytest

from stun_exp.tracking import NoTracker, WandB

REPORT: dict[str, Any] = {
    "name": "test",
    "settings": {"sparsity": 0.4},
    "cost": {"prune": {"wall_seconds": 1.0, "peak_host_gib": 0.5, "peak_device_gib": None, "forward_passes": 2.0}},
    "sparsity": {"achieved": 0.4},
    "experts": {"ratio": 0.2},
    "metrics": {
        "toy_arc/acc,none": {"value": 0.5, "stderr": 0.1, "num_samples": 9, "num_fewshot": 0, "task_version": "1.0"}
    },
}


def test_none_writes_nothing(tmp_path: Path) -> None:
    NoTracker().track(REPORT, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_wandb_is_offline_without_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run folder that `wandb sync` takes is there, with settings, scalars, table and artifact in it."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for name in ("report.json", "plan.json", "config.yaml"):
        (tmp_path / name).write_text(json.dumps(REPORT))
    WandB(project="test", group=None, mode="auto").track(REPORT, tmp_path)
    wandb.teardown()  # as at the end of a process: the service writes the last records
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (record,) = run.glob("*.wandb")
    content = record.read_bytes()
    for expected in (b"sparsity/achieved", b"cost/prune/wall_seconds", b"toy_arc/acc,none", b"results"):
        assert expected in content
    assert wandb.run is None
