"""Prunes random checkpoints of real layer shapes, and measures memory and where the time goes; `make bench-scale`.

A checkpoint has the first few layers of a published model and a small vocabulary, so that layers are all there is. Each
is pruned in a process of its own, calibrated on few tokens: a share of the experts by STUN, then a fifth more of all
weights by Wanda. Writes results/scale.json and results/scale.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from scripts.benchmarks.scale_parts import LENGTH, SEQUENCES, anonymous_memory, device_rate, disk_rates, make

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
_RUNNING: set[str] = set()
HEADER = (
    "model",
    "layers",
    "GB a layer",
    "experts gone",
    "peak GB",
    "of it not in files",
    "s a layer",
    "CPU s",
    "read s",
    "compute s",
    "write s",
    "read GB/s",
    "write GB/s",
    "compute GB/s",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cards", nargs="*", default=["qwen3_30b_a3b", "mixtral_8x7b", "arctic"])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--ratio", type=float, default=0.2, help="share of the experts that goes")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "scale", help="room for source and output")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        source, out, stream, ratio = arguments.child
        print(json.dumps(prune(Path(source), Path(out), stream, float(ratio))))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    file = RESULTS / "scale.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    for card in arguments.cards:
        for num_layers in arguments.layers:
            row = measure(card, num_layers, arguments.folder, arguments.ratio)
            if row is None:
                continue
            rows = [other for other in rows if (other["model"], other["layers"]) != (card, num_layers)] + [row]
            file.write_text(json.dumps(rows, indent=1) + "\n")
            (RESULTS / "scale.md").write_text(table(rows))
            print(table([row]), flush=True)


def measure(card: str, num_layers: int, folder: Path, ratio: float) -> dict[str, Any] | None:
    """One row; None, and a line that says so, if the disk has no room for source and output."""
    import yaml

    dimensions = yaml.safe_load((ROOT / "conf" / "model" / f"{card}.yaml").read_text())["dimensions"]
    with tempfile.TemporaryDirectory(dir=folder) as here:
        try:
            layer_bytes = make(dimensions, num_layers, Path(here) / "source", ratio)
        except OSError as error:
            print(f"{card}, {num_layers} layers: {error}", flush=True)
            return None
        disk = disk_rates(folder)
        found = pruned_by_a_child(Path(here), "out_of_core", ratio)
    return {
        "model": card,
        "layers": num_layers,
        "layer_gb": layer_bytes / 1e9,
        "ratio": ratio,
        "disk": disk,
        "device": device_rate(),
        **found,
    }


def pruned_by_a_child(folder: Path, stream: str, ratio: float = 0.2) -> dict[str, Any]:
    """What `prune` says of folder/source, from a process in which nothing else has happened."""
    places = [str((folder / name).resolve()) for name in ("source", "run")]
    command = [sys.executable, "-m", "scripts.benchmarks.scale", "--child", *places, stream, str(ratio)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def prune(source: Path, out: Path, stream: str, ratio: float = 0.2) -> dict[str, Any]:
    """A run in this process: the pruning stage's seconds, those of reading and writing in it, and its peak memory.

    Reading goes on beside the rest; only the pruning stage reads layers here, since its calibration starts there.
    """
    import stun_exp
    from stun_exp.checkpoint.checkpoint import Checkpoint
    from stun_exp.checkpoint.writer import CheckpointWriter

    seconds = {"read": 0.0, "write": 0.0}
    timed_method(Checkpoint, "read_planned", seconds, "read")
    timed_method(CheckpointWriter, "write_layer", seconds, "write")
    settings = {
        "model.device": "cpu",
        "calibration": "local",
        "calibration.path": str(source / "text.jsonl"),
        "calibration.num_sequences": SEQUENCES,
        "calibration.sequence_length": LENGTH,
        "calibration.batch_size": 1,
        "expert_pruner.ratio": ratio,
        "allocation": "uniform",
        "eval": "none",
        "cache": "none",
        "name": "scale",
        "save": True,
        "stream": stream,
    }
    start = time.process_time()
    with anonymous_memory() as peak:
        report = stun_exp.prune(source, out=out, sparsity=ratio + 0.2, settings=settings)
    cpu = time.process_time() - start
    cost = report.content["cost"]["prune"]
    return {
        "seconds": cost["wall_seconds"],
        **seconds,
        "peak_gb": cost["peak_host_gib"] * 1.073741824,
        "anonymous_gb": peak[0],
        "cpu_seconds": cpu,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a row for each checkpoint: seconds are of a layer, shares of what disk and CPU were measured to do.

    Of computing it is the weights that survive, once, by the second; the share is of copying that many.
    """
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    for row in rows:
        layers, size, disk = row["layers"], row["layer_gb"], row["disk"]
        survivors = (1 - row["ratio"]) * size * layers * 1e9
        read, write = survivors / row["read"], survivors / row["write"]
        compute = survivors / (row["seconds"] - row["write"])
        values = (
            row["model"],
            layers,
            f"{size:.2f}",
            f"{row['ratio']:.0%}",
            f"{row['peak_gb']:.2f}",
            f"{row['anonymous_gb']:.2f}",
            f"{row['seconds'] / layers:.1f}",
            f"{row['cpu_seconds'] / layers:.1f}",
            f"{row['read'] / layers:.1f}",
            f"{(row['seconds'] - row['write']) / layers:.1f}",
            f"{row['write'] / layers:.1f}",
            f"{read / 1e9:.2f} ({read / disk['read']:.0%})",
            f"{write / 1e9:.2f} ({write / disk['write']:.0%})",
            f"{compute / 1e9:.2f} ({2 * compute / row['device']:.1%})",
        )
        lines.append("| " + " | ".join(map(str, values)) + " |")
    return "\n".join(lines) + "\n"


def timed_method(owner: type | ModuleType, name: str, seconds: dict[str, float], what: str) -> None:
    """Adds up the seconds of a method or a function, unless another that counts for the same calls it."""
    method: Callable[..., Any] = getattr(owner, name)

    @wraps(method)
    def timed(*args: Any, **kwargs: Any) -> Any:
        if what in _RUNNING:
            return method(*args, **kwargs)
        _RUNNING.add(what)
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            _RUNNING.remove(what)
            seconds[what] += time.perf_counter() - start

    setattr(owner, name, timed)


if __name__ == "__main__":
    main()
