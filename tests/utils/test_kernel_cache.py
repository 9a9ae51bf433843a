"""The code that oneDNN makes for each shape of a product is kept for few shapes: experts never see the same twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

LIMITS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
PREPARE = "from stun_exp.utils.progress import prepare_libraries\nprepare_libraries()\n"


def output(program: str, folder: Path, **environment: str) -> str:
    """What a program prints in a process of its own, which knows nothing of the limits but what is given."""
    inherited = {name: value for name, value in os.environ.items() if name not in LIMITS}
    inherited["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, env=inherited | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "16 16"), ({LIMITS[0]: "1024"}, "1024 16"), ({LIMITS[1]: "64"}, "16 64")]
)
def test_both_limits_are_set_unless_they_are_given(given: dict[str, str], expected: str, tmp_path: Path) -> None:
    program = f"import os\n{PREPARE}print(*(os.environ[name] for name in {LIMITS}))"
    assert output(program, tmp_path, **given).strip() == expected


def test_a_run_sets_them_before_it_loads_torch(tmp_path: Path) -> None:
    """Which reads them once, as it is loaded."""
    program = f"""
import os, sys

class First:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(*(os.environ.get(limit) for limit in {LIMITS}), flush=True)
            os._exit(0)

sys.meta_path.insert(0, First())
sys.argv = ["stun", "dry_run=true", "hydra.run.dir=run"]
from stun_exp.cli.entry import stun
stun()
print("torch was not loaded")
"""
    assert output(program, tmp_path).strip() == "16 16"


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize(("prepare", "made"), [(PREPARE, "create:cache_miss"), ("", "create:cache_hit")])
def test_forty_shapes_later_a_kernel_is_made_anew(prepare: str, made: str, tmp_path: Path) -> None:
    """By oneDNN's own account; without the limit it is still there."""
    program = f"""
{prepare}
import torch
weight = torch.ones(64, 64).to_mkldnn()
with torch.inference_mode():
    for num_tokens in (*range(1, 41), 1):
        torch.nn.functional.linear(torch.ones(num_tokens, 64).to_mkldnn(), weight)
"""
    lines = [line for line in output(program, tmp_path, ONEDNN_VERBOSE="all").splitlines() if "inner_product" in line]
    of_one_token = [line for line in lines if ",mb1ic64oc64" in line and ",create" in line]
    assert len(of_one_token) >= 2
    assert "create:cache_miss" in of_one_token[0]
    assert made in of_one_token[-1]
