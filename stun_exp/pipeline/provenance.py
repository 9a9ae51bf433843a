"""What else moves a number: code, versions, the device, and the text that the model was calibrated on."""

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from stun_exp.state.device import name_of, processor

PACKAGES = ("torch", "transformers", "lm-eval", "datasets", "hydra-core", "safetensors")


def provenance(device: torch.device, tokens_sha256: str) -> dict[str, Any]:
    """The commit, the versions of libraries, device, processor and threads, and the calibration tokens' digest."""
    return {
        "git_commit": _git_commit(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        "device": name_of(device),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "calibration_tokens_sha256": tokens_sha256,
    }


def _git_commit() -> str | None:
    """The commit this package runs from, `-dirty` if its files differ; None outside a checkout of it.

    A wheel may lie in a folder of somebody's repository, whose commit says nothing of it.
    """
    file = Path(__file__)
    if _git(["ls-files", "--error-unmatch", "--", file.name], file.parent) is None:
        return None
    return _git(["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], file.parent)


def _git(command: Sequence[str], folder: Path) -> str | None:
    """What git says, None if it fails or is not there."""
    try:
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
