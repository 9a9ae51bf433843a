"""Benchmarks of sweeps: what a grid costs beside one point, and a sweep that is started again, and a large report."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.benchmarks.timing import ratio, seconds, timed

BIN = Path(sys.executable).parent
PRUNERS = ("exhaustive", "greedy_reconstruction")
SPARSITIES = [round(0.2 + 0.05 * number, 2) for number in range(10)]
COMMON = {"eval": "none", "expert_pruner.ratio": 0.125}
WARM = COMMON | {"calibration.num_sequences": 8, "sparsity": 0.4}
"""A run before the clock starts, so that libraries are loaded."""


def grid20_dense_over_point() -> dict[str, Any]:
    """Two expert pruners at ten sparsities each, weights pruned on dense inputs, over one such point; at most 1.5.

    On 262,144 calibration tokens, as many as the papers use; each begins with an empty cache. The two pruners go by
    one statistic, which is most of what a point costs. Where selection costs nothing, as with stun and router_norm, it
    is each plan's own pass for the inputs behind its experts, and the ratio is about 3.
    """
    common = COMMON | {"unstructured_pruner.inputs": "dense", "calibration.num_sequences": 512}
    with tempfile.TemporaryDirectory() as folder:
        _run(Path(folder) / "warm", WARM)
        alone = common | {"cache.path": f"{folder}/empty", "sparsity": SPARSITIES[0]}
        point = timed(lambda: _run(Path(folder) / "point", alone))
        grid = timed(lambda: _grid(Path(folder), common))
    return ratio(grid, point)


def grid20_pruned_over_twenty() -> dict[str, Any]:
    """The same with inputs behind pruned layers, ten sparsities in one pass, over twenty times one point; at most 0.6.

    On the toy calibration's 32,768 tokens; one point is the mean of one of each expert pruner.
    """
    common = COMMON | {"unstructured_pruner.inputs": "pruned"}
    with tempfile.TemporaryDirectory() as folder:
        _run(Path(folder) / "warm", WARM)

        def points() -> None:
            for pruner in PRUNERS:
                alone = {"cache": "none", "expert_pruner": pruner, "sparsity": SPARSITIES[5]}
                _run(Path(folder) / pruner, common | alone)

        two = timed(points)
        grid = timed(lambda: _grid(Path(folder), common))
    return ratio(grid, 10 * two)


def resweep_seconds() -> dict[str, Any]:
    """Seconds of a sweep of twenty finished points, from the command line; under 10."""
    with tempfile.TemporaryDirectory() as folder:
        sparsities = ",".join(map(str, SPARSITIES))
        command = [
            *(f"{BIN}/stun", "-m", "eval=none", "expert_pruner=router_norm,stun"),
            *("expert_pruner.ratio=0.125", "unstructured_pruner=magnitude", "allocation=uniform"),
            *(f"sparsity={sparsities}", f"hydra.sweep.dir={folder}/sweep", f"cache.path={folder}/cache"),
        ]

        subprocess.run(command, check=True, capture_output=True)
        return seconds(command, expected=0)


def report200_seconds() -> dict[str, Any]:
    """Seconds of `stun-report` over 200 runs: five methods, ten sparsities, four seeds; under 10."""
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one"
        _run(one, {"eval.limit": 8, "sparsity": 0.4, "cache": "none"})
        _copies(one, Path(folder) / "sweep")
        return seconds([f"{BIN}/stun-report", f"{folder}/sweep"], expected=0)


def _copies(one: Path, sweep: Path) -> None:
    """Two hundred runs made of one: of other names, sparsities, seeds and figures."""
    for number in range(200):
        report = json.loads((one / "report.json").read_text())
        method, sparsity, seed = number % 5, SPARSITIES[number // 5 % 10], number // 50
        report |= {"name": f"method {method}", "seed": seed}
        report["settings"] |= {"name": report["name"], "seed": seed, "sparsity": sparsity}
        report["sparsity"] |= {"achieved": sparsity, "target": sparsity}
        report["provenance"]["calibration_tokens_sha256"] = f"text {seed}"
        for metric in report["metrics"].values():
            metric["value"] *= 1 - 0.01 * method - sparsity / 2 - 0.001 * seed
        run = sweep / str(number)
        run.mkdir(parents=True)
        (run / "report.json").write_text(json.dumps(report))
        shutil.copy(one / "samples.jsonl", run)


def _grid(folder: Path, common: Mapping[str, Any]) -> None:
    """All points, which share a cache; those of one expert pruner go through the weights together."""
    for pruner in PRUNERS:
        shared = {"cache.path": f"{folder}/cache", "expert_pruner": pruner, "sparsity": SPARSITIES}
        _run(folder / f"grid-{pruner}", {**common, **shared})


def _run(out: Path, settings: Mapping[str, Any]) -> None:
    import stun_exp

    stun_exp.prune("toy_moe", out=out, settings={"expert_pruner": "exhaustive", "name": "bench", **settings})
