"""Benchmarks of the commands as users give them: answers, the demo, one run."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.benchmarks.timing import minutes, ratio, seconds

ROOT = Path(__file__).resolve().parents[2]
STUN = [str(Path(sys.executable).parent / "stun")]


def config_error_seconds() -> dict[str, Any]:
    """A mistyped setting, from the prompt to the message; the goal is under 2."""
    return seconds([*STUN, "expert_pruner.ratoi=0.5"], expected=2)


def help_seconds() -> dict[str, Any]:
    """`stun --help`; the goal is under 1."""
    return seconds([*STUN, "--help"], expected=0)


def demo_installed_minutes() -> dict[str, Any]:
    """`make demo` when .venv is there; the goal is at most 4 on two cores."""
    return minutes(lambda: subprocess.run(["make", "demo"], cwd=ROOT, check=True, capture_output=True))


def demo_bare_clone_minutes() -> dict[str, Any]:
    """`git clone` and `make demo`, installation included; the goal is at most 10."""
    folder = ROOT / "runs" / "bare-clone"
    shutil.rmtree(folder, ignore_errors=True)

    def clone_and_demo() -> None:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        subprocess.run(["make", "demo"], cwd=folder, check=True, capture_output=True)

    return minutes(clone_and_demo)


def toy_prune_over_eval() -> dict[str, Any]:
    """Everything before the written checkpoint, over the evaluation, in one run of the default settings."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*STUN, f"hydra.run.dir={folder}"], check=True, capture_output=True)
        cost = json.loads((Path(folder) / "report.json").read_text())["cost"]
    pruning = sum(cost[stage]["charged_seconds"] for stage in ("experts", "allocate", "prune"))
    return ratio(pruning, cost["evaluate"]["charged_seconds"])
