"""What counts as the same model, and what vLLM is asked."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

from stun_exp.calibration.protocol import CalibrationTokens
from stun_exp.calibration.toy import ToyText
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import assemble, load_checkpoint
from stun_exp.export import proof
from stun_exp.toy import WEIGHTS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def text() -> CalibrationTokens:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    return ToyText(domain="all", num_sequences=4, sequence_length=64, batch_size=4).tokens(tokenizer, seed=0)


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


def test_the_batch_is_always_the_same_and_within_the_vocabulary(tiny_model: Callable[[str], Path]) -> None:
    (ids,) = proof.fixed_batch(AutoConfig.from_pretrained(tiny_model("mixtral"))).values()
    assert [len(row) for row in ids] == [64] * 4
    assert set().union(*ids) <= set(range(64))
    assert ids[0][:4] == torch.randint(64, (4, 64), generator=torch.Generator().manual_seed(0))[0, :4].tolist()


def test_the_proof_reads_the_beginning_of_the_calibration_text() -> None:
    sources, targets = torch.arange(700).view(7, 100), torch.arange(35).view(7, 5)
    batch = proof.proof_batch(CalibrationTokens([sources, sources], "", [targets, targets]))
    assert batch["input_ids"] == [list(range(100 * row, 100 * row + 64)) for row in range(4)]
    assert batch["decoder_input_ids"] == [list(range(5 * row, 5 * row + 5)) for row in range(4)]


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen3_next", "gpt_oss", "jamba"])
def test_exact_logits_are_those_of_the_model_in_32_bits(name: str, tiny_model: Callable[[str], Path]) -> None:
    """Its weights are as they were afterwards, and rounding shows in what it computes by itself."""
    narrow = Checkpoint(tiny_model(name), torch.bfloat16)
    model = assemble(narrow, CPU)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    batch = proof.fixed_batch(narrow.config)
    exact_BTV = proof.exact_logits_BTV(model, narrow.paths, batch)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    expected_BTV = proof.logits_BTV(assemble(narrow, CPU).float(), batch)
    torch.testing.assert_close(exact_BTV, expected_BTV, rtol=1e-4, atol=1e-4)
    assert (proof.logits_BTV(model, batch) - exact_BTV).abs().max() > 1e-3


def test_log_probabilities_are_of_each_token_but_the_first() -> None:
    """Of 3 tokens, 2: softmax of (0, 0, ln 2) is (1/4, 1/4, 1/2)."""
    logits_BTV = torch.tensor([[[0, 0, 2.0], [0, 0, 1.0], [0, 9.0, 9.0]]]).log()
    logits_BTV = torch.where(logits_BTV.isinf(), 0.0, logits_BTV)
    found = proof.log_probabilities(logits_BTV, [[0, 2, 1]])
    assert found.exp().tolist() == [pytest.approx([1 / 2, 1 / 3])]


def test_another_runtime_may_differ_by_twice_what_rounding_does() -> None:
    """Rounding changes 0.01 nats in the mean: 0.02 pass, 0.03 do not; without any, a thousandth passes."""
    exact = torch.zeros(2, 8)
    found = proof.compare_log_probabilities(exact, exact + 0.01, exact - 0.0199, "DIR, read by X")
    assert found == {"mean_logprob_difference": pytest.approx(0.0199), "tolerance": pytest.approx(0.02)}
    with pytest.raises(ValueError, match=r"DIR, read by X, is not the pruned model in memory: .* 0\.03 nats"):
        proof.compare_log_probabilities(exact, exact + 0.01, exact + 0.03, "DIR, read by X")
    assert proof.compare_log_probabilities(exact, exact, exact + 0.0009, "DIR")["tolerance"] == 0.001
    with pytest.raises(ValueError, match="is not the pruned model"):
        proof.compare_log_probabilities(exact, exact, exact * float("nan"), "DIR")


def swapped(folder: Path) -> Path:
    """The folder of the bundled model, the first two experts of its last layer exchanged."""
    copytree(WEIGHTS, folder)
    tensors = load_file(folder / "model.safetensors")
    names = [name for name in tensors if ".layers.3." in name and ".experts.0." in name]
    assert names
    for name in names:
        other = name.replace(".experts.0.", ".experts.1.")
        tensors[name], tensors[other] = tensors[other], tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
def test_vllm_is_proven_on_text_and_two_experts_exchanged_are_found(
    vllm_python: str, text: CalibrationTokens, tmp_path: Path
) -> None:
    """The stand-in computes in bf16 as transformers does; on random ids right and wrong models differ alike."""
    written = Checkpoint(WEIGHTS, None)
    ids = proof.proof_batch(text)["input_ids"]
    model = load_checkpoint(WEIGHTS, CPU)
    exact = proof.log_probabilities(proof.exact_logits_BTV(model, written.paths, {"input_ids": ids}), ids)
    ours = proof.log_probabilities(proof.logits_BTV(model, {"input_ids": ids}), ids)
    result = proof._prove_vllm(written, ids, exact, ours, vllm_python)
    assert (result["verified"], result["version"]) == (True, "0.32.0")
    assert 0 < result["mean_logprob_difference"] < result["tolerance"] < 0.05
    with pytest.raises(ValueError, match=r"read by vLLM 0.32.0, is not the pruned model in memory"):
        proof._prove_vllm(Checkpoint(swapped(tmp_path / "swapped"), None), ids, exact, ours, vllm_python)


def test_a_vllm_that_cannot_run_is_said_and_does_not_end_the_run(
    vllm_python: str, tiny_model: Callable[[str], Path]
) -> None:
    """No GPU, or a shape that it cannot take: the checkpoint is as good as it was."""
    result = proof._prove_vllm(
        Checkpoint(tiny_model("olmoe"), None), [[1, 2]], torch.zeros(1, 1), torch.zeros(1, 1), vllm_python
    )
    assert result == {"verified": False, "because": "vLLM 0.32.0 could not run the model: RuntimeError: no experts"}


def test_what_cannot_be_proven_is_said() -> None:
    batch = {"input_ids": [[1, 2]]}
    assert proof._vllm_hindrance(batch, True, "python") == "vLLM builds every layer for equally many experts"
    assert proof._vllm_hindrance(batch, False, None) == "no vLLM was named (export.vllm_python)"
    assert "encoder-decoder" in str(proof._vllm_hindrance(batch | {"decoder_input_ids": [[1]]}, False, "python"))
    assert proof._vllm_hindrance(batch, False, "python") is None
