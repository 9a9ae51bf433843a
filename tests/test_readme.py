"""README's commands are run, its figures are measured ones."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stun_exp.moe.families import DENSE, FAMILIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.strip().startswith("#")
]
BIN = Path(sys.executable).parent
# The same command on less data; what it does and writes is the same.
SMALL = ["eval.limit=2", "calibration.num_sequences=4", "calibration.sequence_length=128"]


def test_readme_has_commands() -> None:
    assert "make demo" in COMMANDS
    assert "make test" in COMMANDS
    assert sum(command.startswith("stun ") for command in COMMANDS) >= 3


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    """Run whole by .ci/run; from within a test `make test` would call itself."""
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("stun ")])
def test_stun_commands_run(command: str, tmp_path: Path) -> None:
    words = [str(BIN / "stun"), *shlex.split(command)[1:]]
    if "--help" in words or words[1] == "inspect":
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
        return
    no_eval = "eval=none" in words or "experiment=laboratory" in words  # it has none
    small = [word for word in SMALL if not (no_eval and word.startswith("eval"))]
    subprocess.run([*words, *small, f"hydra.sweep.dir={tmp_path}/sweep"], cwd=tmp_path, check=True, capture_output=True)
    reports = [json.loads(file.read_text()) for file in tmp_path.rglob("report.json")]
    dry = "dry_run=true" in words
    assert bool(reports) is not dry
    for report in reports:
        asked, achieved = report["sparsity"]["target"], report["sparsity"]["achieved"]
        assert abs(asked - achieved) <= 0.001


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("stun-clusters ")])
def test_figures_are_drawn_of_the_sweep_that_the_readme_names(command: str, tmp_path: Path) -> None:
    sweep = [str(BIN / "stun"), "-m", "experiment=laboratory", "seed=0,1", f"hydra.sweep.dir={tmp_path}"]
    subprocess.run([*sweep, *SMALL[1:]], cwd=tmp_path, check=True, capture_output=True)
    assert shlex.split(command)[1] == "runs/laboratory"  # as every experiment with a grid: runs/NAME
    subprocess.run([str(BIN / "stun-clusters"), str(tmp_path)], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "stability.png").exists()
    assert len(list(tmp_path.glob("*seed=0*/dendrograms.png"))) == 1


def mean_accuracy(report: dict[str, Any]) -> float:
    """In percent, over the benchmarks' headline metrics; perplexity is none."""
    benchmarks = report["settings"]["eval"]["benchmarks"].values()
    keys = [f"{one['task']}/{one['metric']}" for one in benchmarks if "perplexity" not in one["metric"]]
    return 100 * sum(report["metrics"][key]["value"] for key in keys) / len(keys)


def test_readme_says_what_the_demo_measured() -> None:
    """The accuracies of its sentences, by method, at 65 % of the weights, of both models."""
    reports = [
        one for one in json.loads((ROOT / "results/demo.json").read_text()) if one["settings"]["sparsity"] == 0.65
    ]
    for model in ("toy_upcycled", "toy_moe"):
        found = {one["name"]: mean_accuracy(one) for one in reports if one["model"]["source"] == f"bundled:{model}"}
        told = ", ".join(f"{name} {found[name]:.0f} %" for name in ("STUN (OWL)", "OWL", "Wanda"))
        assert told in " ".join(README.split()), told


def test_readme_s_picture_is_there() -> None:
    (picture,) = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert (ROOT / picture).is_file()


def test_readme_has_a_row_for_every_family() -> None:
    rows = re.findall(r"^\| `([a-z0-9_-]+)` \|", README.partition("## Models")[2].partition("## ")[0], re.M)
    moe = sorted(set(FAMILIES) - set(DENSE))
    assert rows == ["model_type", *moe, "model_type", *sorted(DENSE)]  # each behind the head of its table


def test_readme_names_every_card() -> None:
    cards = {file.stem for file in (ROOT / "conf/model").glob("*.yaml")}
    assert cards
    assert {card for card in cards if f"`{card}`" not in README} == set()


def test_every_other_command_is_git() -> None:
    others = [c for c in COMMANDS if not c.startswith(("make ", "stun ", "stun-clusters "))]
    assert all(command.startswith(("git clone", "cd ")) for command in others), others
