"""vLLM in a process of its own: found, asked, and not trusted to be there."""

import os
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_fixtures import STAND_IN, python_with

from stun_exp.serving.vllm_process import VLLMError, VLLMProcess, find_vllm
from stun_exp.toy import WEIGHTS

PROMPTS = [[5, 17, 300, 4, 9], [700, 2, 41]]
GREEDY = {"temperature": 0.0, "max_tokens": 6, "stop": [], "skip_special_tokens": False}


def test_a_vllm_is_found_with_its_version_and_what_it_serves(vllm_python: str) -> None:
    found = find_vllm(vllm_python, "eval.vllm_python")
    assert (found.python, found.version) == (vllm_python, "0.32.0")
    assert found.obstacle(["MixtralForCausalLM"]) is None
    assert found.obstacle(["ArcticForCausalLM"]) == "vLLM 0.32.0 has no ArcticForCausalLM"
    assert found.obstacle([]) is not None


def test_a_python_without_vllm_is_named_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^export.vllm_python=.*: has no vLLM that runs \(ModuleNotFoundError: No m"):
        find_vllm(sys.executable, "export.vllm_python")


@pytest.mark.parametrize("name", ["", "missing", "text"])
def test_a_path_that_is_no_python_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    """A folder, nothing, and a file that cannot be run."""
    (tmp_path / "text").write_text("vllm")
    with pytest.raises(ValueError, match=r"^eval.vllm_python=.*; give the Python of an environment with vLLM") as told:
        find_vllm(str(tmp_path / name), "eval.vllm_python")
    assert "\n" not in str(told.value)


@pytest.mark.slow
def test_what_vllm_computes_comes_over_the_pipe(vllm_python: str) -> None:
    """By hand: a token's log-softmax at the one before it, and greedy tokens one by one."""
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    with VLLMProcess(vllm_python) as vllm:
        vllm.load(WEIGHTS, "float32")
        assert vllm.max_length == 1024
        scores = vllm.log_probabilities(PROMPTS)
        (text,) = vllm.generate(PROMPTS[:1], [GREEDY])
    for ids, row in zip(PROMPTS, scores, strict=True):
        logits_TV = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        assert [own for own, _ in row] == pytest.approx([logits_TV[t, ids[t + 1]].item() for t in range(len(ids) - 1)])
        assert [best for _, best in row] == [logits_TV[t].argmax().item() == ids[t + 1] for t in range(len(ids) - 1)]
    given = model.generate(torch.tensor(PROMPTS[:1]), do_sample=False, max_new_tokens=6)[0, len(PROMPTS[0]) :]
    assert text == tokenizer.decode(given)


@pytest.mark.slow
def test_progress_bars_that_are_off_here_are_on_there(vllm_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM divides by what they count: where ours are silenced it failed with a ZeroDivisionError."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    with VLLMProcess(vllm_python) as vllm:
        vllm.load(WEIGHTS, "bfloat16")
        assert len(vllm.log_probabilities(PROMPTS)) == 2


def test_the_modules_of_another_python_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONPATH leads to what was made for this one."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "vllm.py").write_text("raise ImportError('ours')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "ours") + os.pathsep + os.environ.get("PYTHONPATH", ""))
    assert find_vllm(python_with(tmp_path, vllm=STAND_IN), "eval.vllm_python").version == "0.32.0"


def test_a_process_that_fails_says_its_last_words(vllm_python: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with VLLMProcess(vllm_python) as vllm, pytest.raises(VLLMError, match=r"^RuntimeError: no experts$"):
        vllm.load(tmp_path, "bfloat16")
