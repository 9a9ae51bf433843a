"""Mistakes that the types find before anything is run."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SNIPPETS = {
    "a name that is no setting": (
        "def f(settings: Settings) -> None:\n    settings.evall.prepare()",
        '"Settings" has no attribute "evall"',
    ),
    "an ability that its kind has not": (
        "def f(settings: Settings) -> None:\n    settings.export.chek_plan()",
        '"Export" has no attribute "chek_plan"',
    ),
    "a wrong argument": (
        "def f(settings: Settings, plan: Plan) -> None:\n    settings.export.check_plan(plan, plan)",
        'Argument 1 to "check_plan" of "Export" has incompatible type "Plan"; expected "Architecture"',
    ),
    "a component in another's place": (
        "def g(pruner: ExpertPruner) -> None: ...\ndef f(wanda: Wanda) -> None:\n    g(wanda)",
        'Argument 1 to "g" has incompatible type "Wanda"; expected "ExpertPruner"',
    ),
    "a result of another stage": (
        "def f(run: RunContext, inputs: Inputs) -> Plan:\n    return run.stage(ALLOCATE, decide_experts, inputs)",
        "Incompatible",
    ),
    "a report that is none": ("def f() -> int:\n    return prune('x', out='y')", 'got "Report", expected "int"'),
}
IMPORTS = """
from stun_exp import prune
from stun_exp.allocation.owl import OWL
from stun_exp.allocation.protocol import Allocation
from stun_exp.config.settings import Settings
from stun_exp.evaluation.benchmarks import LMEval
from stun_exp.evaluation.protocol import Evaluation
from stun_exp.export.hf import HfExport
from stun_exp.export.protocol import Export
from stun_exp.inference.measure import MeasureInference
from stun_exp.inference.protocol import Inference
from stun_exp.recovery.expert_distillation import ExpertDistillation
from stun_exp.recovery.protocol import Recovery
from stun_exp.skipping.dynamic import DynamicSkipping
from stun_exp.skipping.protocol import Skipping
from stun_exp.state.cache import Cache, CacheFolder
from stun_exp.tracker.protocol import Tracker
from stun_exp.tracker.wandb import WandB
from stun_exp.unstructured_pruner.none import KeepAllWeights
from stun_exp.unstructured_pruner.protocol import UnstructuredPruner
from stun_exp.unstructured_pruner.sparsegpt import SparseGPT
from stun_exp.expert_pruner.protocol import ExpertPruner
from stun_exp.moe.plan import Plan
from stun_exp.pipeline.allocate import ALLOCATE
from stun_exp.pipeline.context import RunContext
from stun_exp.pipeline.experts import decide_experts
from stun_exp.pipeline.inputs import Inputs
from stun_exp.unstructured_pruner.wanda import Wanda

"""


RIGHT = """
def f(settings: Settings, plan: Plan) -> None:
    settings.eval.prepare()
    print(settings.expert_pruner.removed_share() + plan.num_kept[0])

def fit(
    wanda: Wanda, sparsegpt: SparseGPT, owl: OWL, hf: HfExport, lm_eval: LMEval, wandb: WandB, folder: CacheFolder,
    distillation: ExpertDistillation, dynamic: DynamicSkipping, no_weights: KeepAllWeights, measure: MeasureInference,
) -> tuple[list[UnstructuredPruner], Allocation, Export, Evaluation, Tracker, Cache, Recovery, Skipping, Inference]:
    return [wanda, sparsegpt, no_weights], owl, hf, lm_eval, wandb, folder, distillation, dynamic, measure
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What mypy says of all snippets, each a file of its own."""
    folder = tmp_path_factory.mktemp("snippets")
    for number, (snippet, _) in enumerate(SNIPPETS.values()):
        (folder / f"snippet_{number}.py").write_text(f"{IMPORTS}{snippet}\n")
    (folder / "right.py").write_text(f"{IMPORTS}{RIGHT}")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"MYPYPATH": str(ROOT)})
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_mistake_is_found(name: str, found: str) -> None:
    number = list(SNIPPETS).index(name)
    said = [line for line in found.splitlines() if f"snippet_{number}.py" in line and " error: " in line]
    assert any(SNIPPETS[name][1] in line for line in said), said or found


def test_what_is_right_passes(found: str) -> None:
    """And components fit the protocols of their places."""
    assert [line for line in found.splitlines() if "right.py" in line] == []
