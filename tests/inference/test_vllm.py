"""What vLLM is asked of models side by side, and what is made of its answer; a stand-in answers."""

from pathlib import Path

import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.inference.records import Workload
from stun_exp.inference.timing import Seconds
from stun_exp.inference.vllm import measure_in_vllm, speeds
from stun_exp.serving.vllm_process import InstalledVLLM, find_vllm
from stun_exp.toy import WEIGHTS

WORK = Workload((1, 2), prompt_tokens=8, new_tokens=3, repeats=2)


def prompts(count: int = 2) -> Tensor:
    return torch.zeros(count, 8, dtype=torch.int64)


def test_models_are_measured_and_those_that_it_refuses_are_named(vllm_python: str, mixtral_copy: Path) -> None:
    """The stand-in refuses a model without experts in its config."""
    toy, refused = Checkpoint(WEIGHTS, None), Checkpoint(mixtral_copy, None)
    config = mixtral_copy / "config.json"
    config.write_text(config.read_text().replace("num_local_experts", "num_experts_of_another_name"))
    found = measure_in_vllm(WORK, find_vllm(vllm_python, "x"), {"unpruned": toy, "pruned": refused}, prompts())
    assert found.version == "0.32.0"
    assert found.failed == {"pruned": "RuntimeError: no experts"}
    assert found.speed.keys() == {"unpruned"}
    one, two = found.speed["unpruned"]
    assert (one.batch_size, two.batch_size) == (1, 2)
    assert min(one.prefill.median, one.decode.median) > 0


def test_a_process_that_ends_half_way_says_why(vllm_python: str) -> None:
    """Of a prompt as long as the model takes the stand-in, as the real one, generates nothing: it ends."""
    short = Workload((1,), prompt_tokens=3, new_tokens=3, repeats=2)
    found = measure_in_vllm(short, find_vllm(vllm_python, "x"), {"toy": Checkpoint(WEIGHTS, None)}, prompts(1))
    assert found.speed == {}
    assert "is longer than the maximum model length" in found.failed["toy"]


def test_a_vllm_that_is_gone_gives_the_reason(mixtral: Checkpoint) -> None:
    gone = InstalledVLLM("/bin/false", "0.0", frozenset())
    found = measure_in_vllm(WORK, gone, {"unpruned": mixtral}, prompts())
    assert found.speed == {}
    assert "status" in found.failed["unpruned"]


def test_its_seconds_become_tokens_a_second() -> None:
    """2 prompts of 8 tokens: 2 s to the first token, 4 s more to the third of each. And a pair that says nothing."""
    of_one, of_two = [Seconds(1.0, 1.0)] * 2, [Seconds(2.0, 4.0)] * 2
    found = speeds("1", {"a": [of_one, of_two], "b": [of_one, [Seconds(2.0, 0.0)] * 2]}, {"c": "why"}, WORK)
    assert found.speed.keys() == {"a"}
    assert (found.speed["a"][1].prefill.median, found.speed["a"][1].decode.median) == (8.0, 1.0)
    assert "raise inference.new_tokens" in found.failed["b"]
    assert found.failed["c"] == "why"
