"""Measures the project's speed claims and writes results/bench.json: a list of one entry a figure.

Ratios are of medians of alternated runs against a plain reference that gives the same answer. Run it by `make bench`,
on an otherwise idle machine; name figures to measure only those, the others keep their last value.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.benchmarks.commands import (
    config_error_seconds,
    demo_bare_clone_minutes,
    demo_installed_minutes,
    help_seconds,
    toy_prune_over_eval,
)
from scripts.benchmarks.experts import (
    exhaustive_n16_seconds,
    exhaustive_vs_forwards,
    gram_memory,
    redundancy_routers_seconds,
    stun_budget_vs_restart,
    stun_global_budget_seconds,
)
from scripts.benchmarks.inspection import inspect_command_seconds, inspect_million_seconds
from scripts.benchmarks.models import nf4_expert_bytes_ratio, observe_over_forward
from scripts.benchmarks.streaming import stream_over_memory, stream_overlap, stream_rss_per_layer
from scripts.benchmarks.structured import surgeon_vs_dense_inverse
from scripts.benchmarks.sweeps import (
    grid20_dense_over_point,
    grid20_pruned_over_twenty,
    report200_seconds,
    resweep_seconds,
)
from scripts.benchmarks.weights import sparsegpt_batched_vs_single, wanda_mask_vs_sort

RESULTS = Path(__file__).resolve().parents[2] / "results" / "bench.json"


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


FIGURES: dict[str, Callable[[], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        config_error_seconds,
        help_seconds,
        wanda_mask_vs_sort,
        exhaustive_vs_forwards,
        exhaustive_n16_seconds,
        gram_memory,
        toy_prune_over_eval,
        demo_installed_minutes,
        demo_bare_clone_minutes,
        stun_global_budget_seconds,
        stun_budget_vs_restart,
        redundancy_routers_seconds,
        sparsegpt_batched_vs_single,
        observe_over_forward,
        nf4_expert_bytes_ratio,
        inspect_million_seconds,
        inspect_command_seconds,
        stream_rss_per_layer,
        stream_over_memory,
        stream_overlap,
        grid20_dense_over_point,
        grid20_pruned_over_twenty,
        resweep_seconds,
        report200_seconds,
        surgeon_vs_dense_inverse,
    )
}


def _device() -> str:
    return f"cpu, {os.cpu_count()} cores ({platform.machine()})"


if __name__ == "__main__":
    main()
