"""What vLLM's own environment is asked, and what is made of its answer; a stand-in answers."""

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.inference.records import Workload
from stun_exp.inference.vllm import figures, measure_in_vllm

VLLM = '''"""Stands for vLLM: takes a hundredth of a second a token, and no folder with `refused` in its name."""
import os, time
__version__ = "0.0"
assert "TQDM_DISABLE" not in os.environ, "it divides by the time of a bar that is not there"

class SamplingParams:
    def __init__(self, max_tokens, min_tokens, ignore_eos, temperature):
        assert max_tokens == min_tokens and ignore_eos and temperature == 0.0
        self.max_tokens = max_tokens

class LLM:
    def __init__(self, model, dtype, max_model_len, max_num_seqs, enable_prefix_caching, enforce_eager, **_):
        assert (dtype, max_model_len, max_num_seqs) == ("float32", 11, 2)
        assert (enable_prefix_caching, enforce_eager) == (False, True)
        if "refused" in model:
            raise ValueError("no such\\nmodel")

    def generate(self, prompts, asked, use_tqdm):
        assert all(len(prompt["prompt_token_ids"]) == 8 for prompt in prompts) and not use_tqdm
        time.sleep(0.01 * asked.max_tokens)
'''
PLATFORMS = """
class current_platform:
    is_cpu = staticmethod(lambda: True)
"""
WORK = Workload((1, 2), prompt_tokens=8, new_tokens=3, repeats=2)


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """(The text of its vllm) -> a Python that finds a stand-in for vLLM, and not what this process finds."""

    def make(module: str) -> str:
        (tmp_path / "site" / "vllm").mkdir(parents=True)
        (tmp_path / "site" / "vllm" / "__init__.py").write_text(module)
        (tmp_path / "site" / "vllm" / "platforms.py").write_text(PLATFORMS)
        program = tmp_path / "python"
        program.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}/site" exec "{sys.executable}" "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("TQDM_DISABLE", "1")
        return str(program)

    return make


def prompts(count: int = 2) -> Tensor:
    return torch.zeros(count, 8, dtype=torch.int64)


def test_models_are_measured_and_those_that_it_refuses_are_named(
    python: Callable[[str], str], mixtral: Checkpoint, tmp_path: Path, mixtral_copy: Path
) -> None:
    refused = Checkpoint(mixtral_copy.rename(tmp_path / "refused"), None)
    found = measure_in_vllm(WORK, python(VLLM), {"unpruned": mixtral, "pruned": refused}, prompts())
    assert found.version == "0.0"
    assert found.failed == {"pruned": "no such model"}
    one, two = found.speed["unpruned"]
    assert (one.batch_size, two.batch_size) == (1, 2)
    # 8 tokens in a hundredth of a second or more, and 2 more in two.
    assert 0 < one.prefill.median <= 800
    assert one.decode.median > 0


@pytest.mark.parametrize(
    ("module", "why"), [("raise ImportError('no vLLM')", "no vLLM"), ("import os; os._exit(3)", "status 3")]
)
def test_an_environment_without_vllm_gives_the_reason(
    module: str, why: str, python: Callable[[str], str], mixtral: Checkpoint
) -> None:
    found = measure_in_vllm(WORK, python(module), {"unpruned": mixtral}, prompts())
    assert found.speed == {}
    assert why in found.failed["unpruned"]


def test_its_seconds_become_tokens_a_second() -> None:
    """2 prompts of 8 tokens: 2 s to the first token, 6 s to the third of each. And a pair that says nothing."""
    of_one, of_two = [[1.0, 2.0], [1.0, 2.0]], [[2.0, 6.0], [2.0, 6.0]]
    given = {"version": "1", "times": {"a": [of_one, of_two], "b": [of_one, [[2.0, 2.0]] * 2]}, "failed": {}}
    found = figures(given, WORK)
    assert found.speed.keys() == {"a"}
    assert (found.speed["a"][1].prefill.median, found.speed["a"][1].decode.median) == (8.0, 1.0)
    assert "raise inference.new_tokens" in found.failed["b"]
