"""Where every expert has a noisy copy, STUN removes the copies and nothing else, and the searches agree with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from scripts.duplicate_experts import with_copies
from stun_exp.toy import WEIGHTS

Runner = Callable[..., dict[str, Any]]
ALONE = ("unstructured_pruner=none", "allocation=uniform", "sparsity=0.5", "sparsity_scope=experts", "eval=none")


@pytest.mark.parametrize("choice", ["stun", "stun_paper", "stun_official"])
@pytest.mark.parametrize("noise", [0.01, 0.3, 0.6])
def test_the_bundled_model_with_copies_is_itself_again(
    run_with: Callable[..., dict[str, Any]], tmp_path: Path, noise: float, choice: str
) -> None:
    """Of a cluster of two the lower index stays, which is the original: tensor for tensor, so quality stays."""
    source = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.bfloat16)
    with_copies(source, noise).save_pretrained(tmp_path / "copies")
    AutoTokenizer.from_pretrained(WEIGHTS).save_pretrained(tmp_path / "copies")
    report = run_with(
        tmp_path / "run",
        f"model.path={tmp_path / 'copies'}",
        "model.dtype=bfloat16",
        "calibration=toy",
        "calibration.num_sequences=8",
        f"expert_pruner={choice}",
        "expert_pruner.ratio=0.5",
        "save=true",
        *ALONE,
    )
    assert report["experts"]["after"] == [32] * 4
    files = (tmp_path / "run/checkpoint").glob("*.safetensors")
    written = {name: tensor for file in files for name, tensor in load_file(file).items()}
    original = load_file(WEIGHTS / "model.safetensors")
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(written[name], tensor), name


@pytest.fixture
def doubled(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Callable[[float], Path]:
    """noise -> a tiny Mixtral of 4 experts a layer and a copy of each; each token takes one, so a copy can replace it.

    With two experts a token, the best one and its copy would both be taken, and without the copy another expert would
    come in: a reconstruction loss then rightly counts it as a change.
    """

    def make(noise: float) -> Path:
        torch.manual_seed(0)
        config = MixtralConfig.from_pretrained(tiny_model("mixtral"), num_local_experts=4, num_experts_per_tok=1)
        model = MixtralForCausalLM(config)
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
        folder = tmp_path / f"copies{noise}"
        with_copies(model, noise).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_model("mixtral")).save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("choice", ["stun", "exhaustive", "greedy_reconstruction"])
@pytest.mark.parametrize("noise", [0.01, 0.3, 0.6])
def test_one_of_each_pair_stays(
    runner: Runner, doubled: Callable[[float], Path], tmp_path: Path, noise: float, choice: str
) -> None:
    runner(f"model.path={doubled(noise)}", f"expert_pruner={choice}", "expert_pruner.ratio=0.5", *ALONE)
    for layer in json.loads((tmp_path / "run/plan.json").read_text())["layers"]:
        assert sorted(expert % 4 for expert in layer["kept"]) == [0, 1, 2, 3]
