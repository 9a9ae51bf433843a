"""Benchmarks of sweeps: what a grid costs beside one point, and a sweep that is started again, and a large report."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.benchmarks.timing import ratio, seconds, timed

BIN = Path(sys.executable).parent
PRUNERS = ("exhaustive", "greedy_reconstruction")
SPARSITIES = [round(0.2 + 0.05 * number, 2) for number in range(10)]
COMMON = ["eval=none", "name=bench", "expert_pruner.ratio=0.125"]


def grid20_dense_over_point() -> dict[str, Any]:
    """Two expert pruners at ten sparsities each, weights pruned on dense inputs, over one such point; at most 1.5.

    On 262,144 calibration tokens, as many as the papers use; each begins with an empty cache. The two pruners go by
    one statistic, which is most of what a point costs. Where choosing costs nothing, as with stun and router_norm, each
    plan's own pass for the inputs behind its experts is, and the ratio is about 3.
    """
    common = [*COMMON, "unstructured_pruner.inputs=dense", "calibration.num_sequences=512"]
    with tempfile.TemporaryDirectory() as folder:
        _run(Path(folder) / "warm", *COMMON, "calibration.num_sequences=8", "sparsity=0.4")
        empty = f"cache.path={folder}/empty"
        point = timed(lambda: _run(Path(folder) / "point", *common, empty, f"sparsity={SPARSITIES[0]}"))
        grid = timed(lambda: _grid(Path(folder), common))
    return ratio(grid, point)


def grid20_pruned_over_twenty() -> dict[str, Any]:
    """The same with inputs behind pruned layers, ten sparsities in one pass, over twenty times one point; at most 0.6.

    On the toy calibration's 32,768 tokens; one point is the mean of one of each expert pruner.
    """
    common = [*COMMON, "unstructured_pruner.inputs=pruned"]
    with tempfile.TemporaryDirectory() as folder:
        _run(Path(folder) / "warm", *COMMON, "calibration.num_sequences=8", "sparsity=0.4")

        def points() -> None:
            for pruner in PRUNERS:
                out = Path(folder) / pruner
                _run(out, *common, "cache=none", f"expert_pruner={pruner}", f"sparsity={SPARSITIES[5]}")

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
        _run(one, "eval.limit=8", "sparsity=0.4", "cache=none")
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


def _grid(folder: Path, common: Sequence[str]) -> None:
    """All points, which share a cache; those of one expert pruner go through the weights together."""
    for pruner in PRUNERS:
        out, cache = folder / f"grid-{pruner}", folder / "cache"
        _run(out, *common, f"cache.path={cache}", f"expert_pruner={pruner}", f"sparsity={SPARSITIES}".replace(" ", ""))


def _run(out: Path, *overrides: str) -> None:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from stun_exp.cli.main import CONF
    from stun_exp.config.settings import build, points
    from stun_exp.utils.progress import prepare_libraries

    prepare_libraries()
    from stun_exp.pipeline.run import run

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["expert_pruner=exhaustive", "name=bench", *overrides])
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    out.mkdir(parents=True)
    run(points(build(cfg), {str(key): value for key, value in config.items()}, out))
