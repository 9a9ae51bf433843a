"""A run that is killed, and started again, ends as if it had not been: the same bytes, and nothing done twice."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stun_exp.state.journal import Journal

Go = Callable[..., dict[str, Any]]
InChild = Callable[..., Callable[[], int]]
DieBefore = Callable[..., Callable[[], None]]
Content = Callable[[Path], dict[str, bytes]]
# Times, and what the two folders are called.
OF_ONE_RUN = ("cost", "provenance")


def recorded(out: Path) -> list[str]:
    """The stages that a run's journal has whole records of."""
    file = out / "journal.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    records = [json.loads(line)["record"] for line in lines]
    return [record["stage"] for record in records if "stage" in record]


def same(report: dict[str, Any], other: dict[str, Any]) -> bool:
    return {k: v for k, v in report.items() if k not in OF_ONE_RUN} == {
        k: v for k, v in other.items() if k not in OF_ONE_RUN
    }


@pytest.mark.slow
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_killed_before_every_step_on_disk(
    go: Go,
    in_child: InChild,
    die_before: DieBefore,
    decided: list[str],
    prunings: list[int],
    content: Content,
    tmp_path: Path,
    function: str,
) -> None:
    """All that a run leaves goes through these two calls, and a kill falls once between any two of either."""
    whole = go(out=tmp_path / "whole")
    expected = content(tmp_path / "whole/checkpoint")
    seen: set[tuple[str, ...]] = set()
    for number in range(1, 100):
        out = tmp_path / f"killed{number}"
        killed = in_child(lambda out=out: go(out=out), die_before(os, function, number))()
        if not killed:
            break
        assert killed == signal.SIGKILL
        if (out / "report.json").exists():  # it was over
            assert content(out / "checkpoint") == expected
            continue
        done = recorded(out)
        seen.add(tuple(done))
        decided.clear()
        prunings.clear()
        report = go(out=out)
        assert content(out / "checkpoint") == expected, number
        assert same(report, whole)
        assert decided == [stage for stage in ("experts", "allocate") if stage not in done]
        assert prunings == list(range(done.count("prune"), 3))
    assert number > 15
    stages = ["experts", "allocate", "prune", "prune", "prune"]
    assert seen >= {tuple(stages[:count]) for count in range(1, 6)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_again_and_again(
    go: Go, in_child: InChild, content: Content, tmp_path: Path, seed: int
) -> None:
    began = time.monotonic()
    in_child(lambda: go(out=tmp_path / "whole"))()
    took = time.monotonic() - began
    times, kills = random.Random(seed), 0
    while kills < 20 and not (tmp_path / "out/report.json").exists():
        child = in_child(go)
        time.sleep(times.uniform(0, 0.8 * took))
        os.kill(child.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        if child() == signal.SIGKILL:
            kills += 1
        elif not kills:  # quicker than the first run, by which the times were chosen: once more, with shorter ones
            took /= 2
            shutil.rmtree(tmp_path / "out")
    go()
    assert kills > 0
    assert content(tmp_path / "out/checkpoint") == content(tmp_path / "whole/checkpoint")
    # What is kept is recorded again by who was killed before the report was written.
    assert [stage for stage in recorded(tmp_path / "out") if stage != "kept"] == ["experts", "allocate", *["prune"] * 3]


VARIANTS = {
    "on dense inputs": ("mixtral", "unstructured_pruner.inputs=dense"),
    "weights alone": ("mixtral", "unstructured_pruner=magnitude"),
    "with curvature": ("qwen3_moe", "unstructured_pruner=sparsegpt"),
    "a dense layer, experts alone": ("qwen2_moe", "sparsity_scope=experts"),
    "experts merged": ("olmoe", "expert_pruner=hc_smoe"),
    "in 4 bits": ("mixtral", "model.load=nf4"),
    "fused on disk": ("gpt_oss", "unstructured_pruner.attention=false"),
    "two stacks": ("switch_transformers", "calibration=pairs", "calibration.path=PAIRS", "unstructured_pruner=wanda"),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_between_two_layers(
    run_with: Go,
    tiny_model: Callable[[str], Path],
    texts: dict[str, Path],
    in_child: InChild,
    die_before: DieBefore,
    prunings: list[int],
    content: Content,
    tmp_path: Path,
    variant: str,
) -> None:
    """What reaches a layer is made again from those before it as they were written, or, on dense inputs, as planned."""
    family, *overrides = VARIANTS[variant]

    def start(out: Path) -> dict[str, Any]:
        return run_with(
            out,
            f"model.path={tiny_model(family)}",
            "calibration=local",
            f"calibration.path={texts['local']}",
            "calibration.sequence_length=32",
            "calibration.num_sequences=16",
            "calibration.batch_size=4",
            "expert_pruner.ratio=0.2",
            "sparsity=0.5",
            "save=true",
            *(override.replace("PAIRS", str(texts["pairs"])) for override in overrides),
        )

    whole = start(tmp_path / "whole")
    layers = len(whole["sparsity"]["per_layer"])
    for done in (1, 2):
        out = tmp_path / f"killed{done}"
        # The first two records are of the experts and of the allocation.
        assert in_child(lambda out=out: start(out), die_before(Journal, "add", 2 + done + 1))() == signal.SIGKILL
        assert recorded(out) == ["experts", "allocate", *["prune"] * done]
        prunings.clear()
        assert same(start(out), whole)
        assert prunings == list(range(done, layers))
        assert content(out / "checkpoint") == content(tmp_path / "whole/checkpoint")


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    """Calibration text for models of one stack and of two."""
    rows = torch.randint(1, 64, (40, 40), generator=torch.Generator().manual_seed(0)).tolist()
    kinds = {
        "local": [{"input_ids": row} for row in rows],
        "pairs": [{"input_ids": row[:20], "labels": row[20 : 34 - row[0] % 2]} for row in rows],
    }
    for kind, content in kinds.items():
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, content)))
    return {kind: tmp_path / f"{kind}.jsonl" for kind in kinds}


@pytest.mark.slow
def test_a_real_command_killed_and_given_again(tmp_path: Path, content: Content) -> None:
    """The bundled model, from the command line, killed by the system as soon as a layer is recorded, and again."""

    def command(name: str) -> list[str]:
        settings = ["sparsity=0.4", "eval=none", "save=true", "model.device=cpu", "calibration.num_sequences=4"]
        return [sys.executable, "-m", "stun_exp", *settings, f"hydra.run.dir={tmp_path / name}"]

    subprocess.run(command("whole"), check=True, capture_output=True)
    layers = recorded(tmp_path / "whole").count("prune")
    for stages in (3, 4):
        process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(recorded(tmp_path / "killed")) < stages and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
    # A busy machine may let it come to its end before the kill.
    killed = not (tmp_path / "killed/report.json").exists()
    done = subprocess.run(command("killed"), check=True, capture_output=True, text=True)
    assert ("goes on" if killed else "already complete") in done.stderr
    assert recorded(tmp_path / "killed").count("prune") == layers
    assert content(tmp_path / "killed/checkpoint") == content(tmp_path / "whole/checkpoint")
    assert "stun sparsity=0.4 eval=none" in (tmp_path / "killed/checkpoint/README.md").read_text()
