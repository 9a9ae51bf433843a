"""What a run did and what it cost, written once, whole, as report.json."""

import json
import platform
import resource
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from stun_exp.state.device import name_of, processor
from stun_exp.state.statistics_cache import Saved
from stun_exp.utils.files import write_file
from stun_exp.utils.json_files import strict
from stun_exp.utils.progress import console

PACKAGES = ("torch", "transformers", "lm-eval", "datasets", "hydra-core", "safetensors")


@dataclass
class Cost:
    """One stage's cost; `forward_passes` are whole-model passes over the calibration tokens."""

    wall_seconds: float = 0.0
    peak_host_gib: float = 0.0
    peak_device_gib: float | None = None
    forward_passes: float = 0.0
    cached_seconds: float = 0.0
    """Of the seconds, and the passes are among theirs, what another run spent and this one took from the cache."""

    def charge(self, saved: Saved) -> None:
        """Adds what it would have cost to compute what was known."""
        self.cached_seconds += saved.seconds
        self.forward_passes += saved.forward_passes


class Ledger:
    """Collects the report of one run."""

    def __init__(self, device: torch.device):
        self.device = device
        self.costs: dict[str, Cost] = {}
        self.warnings: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[Cost]:
        """Measures a stage and prints one line when it is done."""
        cost = Cost()
        _reset_peaks(self.device)
        start = time.perf_counter()
        yield cost
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            cost.peak_device_gib = torch.cuda.max_memory_allocated(self.device) / 2**30
        cost.wall_seconds += time.perf_counter() - start + cost.cached_seconds
        cost.peak_host_gib = _peak_host_gib()
        self.costs[name] = cost
        device = "" if cost.peak_device_gib is None else f", {cost.peak_device_gib:.2f} GiB device"
        console.print(f"{name:<12} {cost.wall_seconds:7.1f} s  {cost.peak_host_gib:.2f} GiB host{device}")

    def warn(self, message: str) -> None:
        """Says it on the terminal and in the report."""
        self.warnings.append(message)
        console.print(f"warning: {message}", style="yellow", markup=False)

    def cost(self) -> dict[str, dict[str, Any]]:
        return {name: asdict(cost) for name, cost in self.costs.items()}


def provenance(device: torch.device, tokens_sha256: str) -> dict[str, Any]:
    """What else moves a number: code, library versions, device, processor and threads, calibration tokens."""
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


def write_samples(path: Path, samples: Sequence[Any]) -> None:
    """A line of JSON for each item that was evaluated (a dataclass); no file for none."""
    if samples:
        write_file(path, [(json.dumps(strict(asdict(sample)), allow_nan=False) + "\n").encode() for sample in samples])


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all, numbers that are not finite as text; OSError that names it.

    `with_numbers` reads such text back.
    """
    write_file(path, [(json.dumps(strict(content), indent=1, allow_nan=False) + "\n").encode()])


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


def _reset_peaks(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # not Linux: the peak is then the process's, not the stage's
        Path("/proc/self/clear_refs").write_text("5")


def _peak_host_gib() -> float:
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**20
    except (OSError, IndexError):
        scale = 2**30 if platform.system() == "Darwin" else 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
