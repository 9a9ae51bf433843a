"""What a report says of where and by what it was made."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from stun_exp.pipeline import provenance as module
from stun_exp.pipeline.provenance import provenance

CPU = torch.device("cpu")


def test_the_commit_is_that_of_a_checkout_and_not_of_a_repository_around_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "venv" / "provenance.py"
    installed.parent.mkdir()
    installed.touch()
    monkeypatch.setattr(module, "__file__", str(installed))
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
