"""What counts as the same model, and what vLLM is asked."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from stun_exp.export import proof

VLLM = '''"""Stands for vLLM: the log-probabilities are read from a file."""
import json, pathlib

class SamplingParams:
    def __init__(self, max_tokens, temperature, prompt_logprobs):
        assert (max_tokens, temperature, prompt_logprobs) == (1, 0.0, 1)

class Logprob:
    def __init__(self, logprob):
        self.logprob = logprob

class Answer:
    def __init__(self, ids, logprobs):
        # The first token has no predecessor; besides the token itself comes the likeliest.
        self.prompt_logprobs = [None] + [
            {(token + 1) % 64: Logprob(0.0), token: Logprob(value)} for token, value in zip(ids[1:], logprobs)
        ]

class LLM:
    def __init__(self, model, enforce_eager, max_model_len):
        assert max_model_len == 25
        self.given = json.loads((pathlib.Path(model) / "given.json").read_text())

    def generate(self, prompts, sampling_params):
        return [Answer(p["prompt_token_ids"], given) for p, given in zip(prompts, self.given)]
'''


@pytest.fixture
def fake_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "vllm.py").write_text(VLLM)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    importlib.invalidate_caches()


@pytest.fixture
def batch(tiny_model: Callable[[str], Path]) -> dict[str, list[list[int]]]:
    return proof.fixed_batch(AutoConfig.from_pretrained(tiny_model("mixtral")))


def test_logits_may_differ_by_a_share_of_the_largest() -> None:
    """The largest is 50: 1e-4 of it are 0.005 in 32 bits, and 1e-2 are 0.5 in 16."""
    ours = torch.tensor([[[50.0, 1.0]]])
    near, far = ours + 0.004, ours + 0.006
    found = proof.compare_logits(ours, near, torch.float32, "DIR")
    assert found["tolerance"] == pytest.approx(0.005)
    assert found["max_logit_difference"] == pytest.approx(0.004, rel=1e-3)
    with pytest.raises(ValueError, match=r"DIR, is not the pruned model in memory: .* 0.006 apart, and 0.005"):
        proof.compare_logits(ours, far, torch.float32, "DIR")
    assert proof.compare_logits(ours, far, torch.bfloat16, "DIR")["tolerance"] == pytest.approx(0.5)


def test_not_a_number_is_no_agreement() -> None:
    """NaN is not above the tolerance either, and two broken models would pass."""
    broken = torch.tensor([[[float("nan"), 1.0]]])
    with pytest.raises(ValueError, match="is not the pruned model"):
        proof.compare_logits(broken, broken, torch.float32, "DIR")


def test_the_batch_is_always_the_same_and_within_the_vocabulary(batch: dict[str, list[list[int]]]) -> None:
    (ids,) = batch.values()
    assert [len(row) for row in ids] == [24, 24]
    assert set().union(*ids) <= set(range(64))
    assert ids[0][:4] == torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(0))[0, :4].tolist()


def own_logprobs(logits_BTV: torch.Tensor, batch: dict[str, list[list[int]]]) -> list[list[float]]:
    """Token by token: the log-softmax at the position before it."""
    return [
        [logits_BTV[b, t - 1].double().log_softmax(0)[row[t]].item() for t in range(1, len(row))]
        for b, row in enumerate(batch["input_ids"])
    ]


@pytest.mark.usefixtures("fake_vllm")
def test_vllm_gives_each_token_the_probability_that_we_give(batch: dict[str, list[list[int]]], tmp_path: Path) -> None:
    logits_BTV = torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(0))
    (tmp_path / "given.json").write_text(json.dumps(own_logprobs(logits_BTV, batch)))
    result = proof._prove_vllm(tmp_path, batch, logits_BTV, trust_remote_code=False)
    assert result["verified"] is True
    assert result["mean_logprob_difference"] < 1e-5


@pytest.mark.usefixtures("fake_vllm")
def test_another_model_in_vllm_is_an_error(batch: dict[str, list[list[int]]], tmp_path: Path) -> None:
    logits_BTV = torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(0))
    given = own_logprobs(logits_BTV, batch)
    (tmp_path / "given.json").write_text(json.dumps([[p + 0.2 for p in row] for row in given]))
    with pytest.raises(ValueError, match=r"read by vLLM, is not the pruned model in memory: .* 0\.2 nats"):
        proof._prove_vllm(tmp_path, batch, logits_BTV, trust_remote_code=False)


@pytest.mark.usefixtures("fake_vllm")
def test_a_vllm_that_cannot_run_is_said_and_does_not_end_the_run(
    batch: dict[str, list[list[int]]], tmp_path: Path
) -> None:
    """No GPU, or a family that it lacks: the checkpoint is as good as it was."""
    result = proof._prove_vllm(tmp_path, batch, torch.zeros(2, 24, 64), trust_remote_code=False)
    assert result["verified"] is False
    assert "vLLM is installed, and could not run the model: FileNotFoundError" in result["because"]


def test_a_vllm_that_is_not_there_is_said(batch: dict[str, list[list[int]]], tmp_path: Path) -> None:
    result = proof._prove_vllm(tmp_path, batch, torch.zeros(2, 24, 64), trust_remote_code=False)
    assert result == {"verified": False, "because": "vLLM is not installed here"}
