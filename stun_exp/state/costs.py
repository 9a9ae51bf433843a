"""What each stage of a run costs: time, memory and passes over the calibration tokens."""

import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass
class StageCost:
    """One stage's cost, in seconds, GiB and whole-model passes over the calibration tokens."""

    wall_seconds: float = 0.0
    """What this run spent, all of its starts together if it was interrupted."""
    charged_seconds: float = 0.0
    """The same, and what another run once spent on what was taken from the cache: methods are compared by it."""
    peak_host_gib: float = 0.0
    peak_device_gib: float | None = None
    forward_passes: float = 0.0

    def add(self, other: "StageCost") -> None:
        """Adds the time and the passes of another cost."""
        self.wall_seconds += other.wall_seconds
        self.charged_seconds += other.charged_seconds
        self.forward_passes += other.forward_passes

    def charge(self, cached: "StageCost") -> None:
        """Adds what it once cost to compute what was taken from the cache."""
        self.charged_seconds += cached.charged_seconds
        self.forward_passes += cached.forward_passes

    def leave_out(self, seconds: float) -> None:
        """Takes off time that was spent on something else."""
        self.wall_seconds -= seconds
        self.charged_seconds -= seconds


class Costs:
    """The costs of a run's stages, in their order."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stages: dict[str, StageCost] = {}

    @contextmanager
    def measured(self, stage: str) -> Iterator[StageCost]:
        """Measures the block; a stage that fails has no cost."""
        cost = StageCost()
        _reset_peaks(self.device)
        start = time.perf_counter()
        yield cost
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            cost.peak_device_gib = torch.cuda.max_memory_allocated(self.device) / 2**30
        elapsed = time.perf_counter() - start
        cost.add(StageCost(elapsed, elapsed))
        cost.peak_host_gib = _peak_host_gib()
        self.stages[stage] = cost

    def json(self) -> dict[str, dict[str, Any]]:
        """The costs as the report has them."""
        return {name: asdict(cost) for name, cost in self.stages.items()}


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
