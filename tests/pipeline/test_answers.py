"""What the unpruned model says to prompts, against a stock model; and when a run asks it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from stun_exp.calibration.protocol import Sampling
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import assemble
from stun_exp.pipeline import answers as module
from stun_exp.pipeline.answers import answers, check_fits

Runner = Callable[..., dict[str, Any]]
PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12]]
GREEDY = Sampling(max_tokens=6, temperature=0.0, top_p=1.0, seed=0)
SELF = ("calibration=self", "calibration@calibration.prompts=local", "calibration.prompt_tokens=8")
SMALL = ("calibration.answer_tokens=8", "calibration.sequence_length=16", "calibration.num_sequences=4")


@pytest.fixture
def model(mixtral: Checkpoint) -> Any:
    return assemble(mixtral, torch.device("cpu"))


@torch.no_grad()
def step_by_step(folder: Path, prompt: list[int], number: int) -> list[int]:
    """The likeliest token again and again, up to the end of text, each by a pass over all that is there."""
    stock, ids = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), list(prompt)
    for _ in range(number):
        ids.append(int(stock(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 0:
            break
    return ids[len(prompt) :]


def test_greedy_answers_are_those_of_a_stock_model_run_by_hand(model: Any, mixtral: Checkpoint) -> None:
    """Prompts of different lengths in one batch: padding is not seen."""
    assert answers(model, PROMPTS, GREEDY) == [step_by_step(mixtral.path, prompt, 6) for prompt in PROMPTS]


def test_an_answer_ends_with_the_first_end_of_text(model: Any) -> None:
    """Whatever token that is: of this one the model's greedy answers are full."""
    first = answers(model, PROMPTS, GREEDY)[0]
    model.generation_config.eos_token_id = [first[2], 63]
    expected = first[: first.index(first[2]) + 1]
    assert answers(model, PROMPTS, GREEDY)[0] == expected


def test_the_models_own_way_of_sampling_is_not_used(model: Any) -> None:
    """Chat models come with a temperature and penalties in their generation_config.json."""
    plain = answers(model, PROMPTS, GREEDY)
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, eos_token_id=0)
    assert answers(model, PROMPTS, GREEDY) == plain


def test_sampled_answers_go_by_their_seed_alone(model: Any) -> None:
    def sampled(seed: int, **more: float) -> list[list[int]]:
        return answers(
            model, PROMPTS, Sampling(**{"max_tokens": 6, "temperature": 1.0, "top_p": 1.0, **more}, seed=seed)
        )

    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = sampled(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert sampled(0) == first != sampled(1)
    # So little of the probability that the likeliest token alone is in it.
    assert sampled(0, top_p=1e-6) == answers(model, PROMPTS, GREEDY)


def test_a_model_that_does_not_fit_is_refused_with_the_way_out(mixtral: Checkpoint) -> None:
    size = 4 * mixtral.num_parameters
    check_fits(mixtral, False, size)
    with pytest.raises(ValueError, match=r"runs the whole unpruned model, .*pass stream=out_of_core"):
        check_fits(mixtral, False, size - 1)
    check_fits(mixtral, True, size // 4)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of prompts each time that the model is asked."""
    calls, real = list[int](), module.answers

    def counted(model: Any, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
        calls.append(len(prompts))
        return real(model, prompts, sampling)

    monkeypatch.setattr(module, "answers", counted)
    return calls


@pytest.fixture
def go(tmp_path: Path, run_with: Runner, mixtral: Checkpoint) -> Runner:
    """A run that calibrates on the answers to 30 prompts of six words."""
    words = (f"w{i} " * 6 for i in range(1, 31))
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in words))
    prompts = f"calibration.prompts.path={tmp_path / 'prompts.jsonl'}"

    def run(name: str, *overrides: str) -> dict[str, Any]:
        return run_with(tmp_path / name, f"model.path={mixtral.path}", *SELF, prompts, *SMALL, *overrides)

    return run


def test_answers_are_kept_for_other_runs_of_the_same_model(go: Runner, tmp_path: Path, asked: list[int]) -> None:
    """Another number of sequences asks for more of the same; another temperature for others."""
    cache = ("cache=folder", f"cache.path={tmp_path / 'cache'}", "calibration.batch_size=2")
    first = go("a", *cache)
    once = len(asked)
    assert once > 0
    again = go("b", *cache, "expert_pruner.ratio=0.34", "sparsity=0.5")
    assert len(asked) == once
    sha256 = "calibration_tokens_sha256"
    assert again["provenance"][sha256] == first["provenance"][sha256]
    assert first["cost"]["open"]["charged_seconds"] == first["cost"]["open"]["wall_seconds"]
    assert again["cost"]["open"]["charged_seconds"] > again["cost"]["open"]["wall_seconds"]
    go("c", *cache, "calibration.num_sequences=6")
    assert 0 < len(asked) - once < once
    before = len(asked)
    assert go("d", *cache, "calibration.temperature=1.0")["provenance"][sha256] != first["provenance"][sha256]
    assert len(asked) - before == once


def test_a_recovery_asks_for_no_answer_twice(go: Runner, asked: list[int]) -> None:
    """Without a cache: what it trains on follows the calibration's sequences, which are drawn again."""
    go("a", "calibration.batch_size=2")
    alone = len(asked)
    asked.clear()
    training = ("recovery=expert_distillation", "recovery.num_sequences=4", "recovery.epochs=1")
    go("b", "calibration.batch_size=2", *training)
    assert alone < len(asked) <= 2 * alone


def test_experts_on_disk_answer_alike_and_that_is_said(go: Runner) -> None:
    in_memory, in_files = go("a"), go("b", "stream=out_of_core")
    sha256 = "calibration_tokens_sha256"
    assert in_files["provenance"][sha256] == in_memory["provenance"][sha256]
    told = "calibration=self with stream.experts=disk: experts are read from disk for every token"
    assert [told in " ".join(report["warnings"]) for report in (in_memory, in_files)] == [False, True]


def test_a_dry_run_does_not_ask(go: Runner, asked: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    go("a", "dry_run=true")
    assert asked == []
    assert "64 tokens" in capsys.readouterr().out


def test_a_run_that_is_refused_does_not_ask_first(go: Runner, asked: list[int]) -> None:
    with pytest.raises(ValueError, match=r"pattern"):
        go("a", "unstructured_pruner.pattern=2:7", "sparsity=0.5")
    assert asked == []


def test_more_tokens_than_the_model_takes_are_refused(go: Runner, asked: list[int]) -> None:
    with pytest.raises(ValueError, match=r"answer_tokens=60: with a prompt of 6 tokens .* the 64 that the model takes"):
        go("a", "calibration.answer_tokens=60")
    assert asked == []
