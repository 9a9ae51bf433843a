"""Reports as a run writes them, made by hand."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from stun_exp.report.schema import SCHEMA


def stage(seconds: float, host: float, device: float | None = None, passes: float = 0.0) -> dict[str, Any]:
    return {"wall_seconds": seconds, "peak_host_gib": host, "peak_device_gib": device, "forward_passes": passes}


def benchmark(task: str, metric: str, shots: int = 0) -> dict[str, Any]:
    return {"_target_": "stun_exp.evaluation.Benchmark", "task": task, "num_fewshot": shots, "metric": metric}


def figure(value: float, stderr: float | None, shots: int = 0) -> dict[str, Any]:
    return {"value": value, "stderr": stderr, "num_samples": 224, "num_fewshot": shots, "task_version": "1.0"}


@pytest.fixture
def make_report() -> Callable[..., dict[str, Any]]:
    """(name, accuracy, perplexity, seed=, sparsity=, and settings or choices by their dotted names) -> a report."""

    def make(
        name: str = "STUN (OWL)",
        accuracy: float = 0.5,
        perplexity: float | None = None,
        *,
        seed: int = 0,
        sparsity: float = 0.4,
        stderr: float | None = 0.025,
        model: str = "bundled:toy_moe",
        baseline: float | None = None,
        choices: dict[str, str] | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        benchmarks = {"arc": benchmark("arc", "acc,none")}
        metrics = {"arc/acc,none": figure(accuracy, stderr), "arc/other,none": figure(9, None)}
        if perplexity is not None:
            benchmarks["text"] = benchmark("text", "byte_perplexity,none")
            metrics["text/byte_perplexity,none"] = figure(perplexity, None)
        report: dict[str, Any] = {
            "schema": SCHEMA,
            "name": name,
            "seed": seed,
            "choices": {"model": "toy_moe", "calibration": "toy", "experiment": None, "hydra/launcher": "basic"},
            "settings": {
                "name": name,
                "seed": seed,
                "sparsity": sparsity,
                "sparsity_scope": "decoder",
                "model": {"path": model, "dtype": "float32"},
                "calibration": {"_target_": "stun_exp.calibration.ToyText", "num_sequences": 64},
                "expert_pruner": {"_target_": "stun_exp.expert_pruner.stun.STUN", "ratio": 0.2, "lambda2": 0.0},
                "eval": {"benchmarks": benchmarks, "limit": None, "batch_size": 32, "backend": "hf"},
                "tracker": {"_target_": "stun_exp.tracking.NoTracker"},
            },
            "model": {"source": model, "params_before": 3_851_392},
            "diagnostics": {
                "kurtosis": {stage: {"all": 3.5, "nonzero": 3.0} for stage in ("before", "experts", "weights")}
            },
            "experts": {"ratio": 0.203, "before": [16, 16], "after": [12, 13]},
            "sparsity": {
                "target": sparsity,
                "achieved": sparsity,
                "per_layer": [{"removed": 10, "zeros": 20, "weights_in_scope": 100}] * 2,
            },
            "recovery": None,
            "skipping": None,
            "metrics": metrics,
            "baseline": None if baseline is None else {"metrics": {"arc/acc,none": figure(baseline, 0.01)}},
            "cost": {
                "experts": stage(0.26, 0.5, passes=16.0),
                "prune": stage(2.0, 1.25, passes=1.7),
                "evaluate": stage(3.6, 9.0),
            },
            "provenance": {"calibration_tokens_sha256": f"tokens of seed {seed}", "versions": {"lm-eval": "0.4.13"}},
        }
        report["choices"] |= choices or {}
        for key, value in settings.items():
            node = report["settings"]
            *folders, leaf = key.split(".")
            for folder in folders:
                node = node[folder]
            node[leaf] = value
        return deepcopy(report)

    return make
