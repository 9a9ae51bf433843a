"""Measures the project's speed claims and writes results/bench.json: a list of one entry a figure.

Ratios are of medians of alternated runs against a plain reference that gives the same answer. Run it by `make bench`,
on an otherwise idle machine; name figures to measure only those, the others keep their last value.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "bench.json"
STUN = [str(Path(sys.executable).parent / "stun")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *FIGURES], metavar="NAME", help=", ".join(FIGURES))
    names = parser.parse_args().names or list(FIGURES)
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    entries = {entry["name"]: entry for entry in kept}
    for name in names:
        entries[name] = {
            "name": name,
            **FIGURES[name](),
            "device": _device(),
            "command": f"make bench NAMES={name}",
        }
        print(f"{name}: {entries[name]['value']:.3g} {entries[name]['unit']}", flush=True)
    RESULTS.write_text(json.dumps([entries[name] for name in FIGURES if name in entries], indent=1) + "\n")


def config_error_seconds() -> dict[str, Any]:
    """A mistyped setting, from the prompt to the message; the goal is under 2."""
    return _seconds([*STUN, "expert_pruner.ratoi=0.5"], expected=2)


def help_seconds() -> dict[str, Any]:
    """`stun --help`; the goal is under 1."""
    return _seconds([*STUN, "--help"], expected=0)


def demo_installed_minutes() -> dict[str, Any]:
    """`make demo` when .venv is there; the goal is at most 4 on two cores."""
    return _minutes(lambda: subprocess.run(["make", "demo"], cwd=ROOT, check=True, capture_output=True))


def demo_bare_clone_minutes() -> dict[str, Any]:
    """`git clone` and `make demo`, installation included; the goal is at most 10."""
    folder = ROOT / "runs" / "bare-clone"
    shutil.rmtree(folder, ignore_errors=True)

    def clone_and_demo() -> None:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        subprocess.run(["make", "demo"], cwd=folder, check=True, capture_output=True)

    return _minutes(clone_and_demo)


def toy_prune_over_eval() -> dict[str, Any]:
    """Everything before the written checkpoint, over the evaluation, in one run of the default settings."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*STUN, f"hydra.run.dir={folder}"], check=True, capture_output=True)
        cost = json.loads((Path(folder) / "report.json").read_text())["cost"]
    pruning = sum(cost[stage]["wall_seconds"] for stage in ("experts", "allocate", "prune"))
    return _ratio(pruning, cost["evaluate"]["wall_seconds"])


def wanda_mask_vs_sort() -> dict[str, Any]:
    """The mask of one 4096 x 14336 matrix at 50 %, against a stable sort of each row."""
    import torch

    from stun_exp.unstructured_pruner.masks import lowest

    saliency_RC = torch.rand(4096, 14336, generator=torch.Generator().manual_seed(0))

    def by_sort() -> torch.Tensor:
        order_RC = saliency_RC.argsort(dim=1, stable=True)[:, : saliency_RC.shape[1] // 2]
        return torch.zeros_like(saliency_RC, dtype=torch.bool).scatter_(1, order_RC, True)

    assert torch.equal(lowest(saliency_RC, 0.5), by_sort())
    ours, reference = _alternate(lambda: lowest(saliency_RC, 0.5), by_sort)
    return {**_ratio(reference, ours), "unit": "times faster", "ours": ours, "reference": reference}


FIGURES: dict[str, Callable[[], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        config_error_seconds,
        help_seconds,
        wanda_mask_vs_sort,
        toy_prune_over_eval,
        demo_installed_minutes,
        demo_bare_clone_minutes,
    )
}


def _seconds(command: list[str], expected: int) -> dict[str, Any]:
    def once() -> None:
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == expected, done.stderr.decode()

    value = statistics.median(_timed(once) for _ in range(7))
    return {"value": value, "unit": "s", "ours": value, "reference": None}


def _minutes(function: Callable[[], Any]) -> dict[str, Any]:
    value = _timed(function) / 60
    return {"value": value, "unit": "min", "ours": value, "reference": None}


def _ratio(ours: float, reference: float) -> dict[str, Any]:
    return {"value": ours / reference, "unit": "ratio", "ours": ours, "reference": reference}


def _alternate(ours: Callable[[], Any], reference: Callable[[], Any], repeats: int = 5) -> tuple[float, float]:
    """Median seconds of each, run in turns so that both meet the same disturbances."""
    pairs = [(_timed(ours), _timed(reference)) for _ in range(repeats)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def _timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _device() -> str:
    return f"cpu, {os.cpu_count()} cores ({platform.machine()})"


if __name__ == "__main__":
    main()
