"""Prompts with the model's own answers, which are played here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from row_files import write_rows
from transformers import AutoTokenizer

from stun_exp.calibration.local import LocalText
from stun_exp.calibration.protocol import Calibration, Sampling
from stun_exp.calibration.self_generated import SelfGenerated
from stun_exp.calibration.toy import ToyText
from stun_exp.pipeline.training_text import training_sequences

END = 0


@pytest.fixture
def tokenizer(tiny_model: Callable[[str], Path]) -> Any:
    """Words w0 ... w63 are the ids 0 ... 63, and w0 ends a text."""
    return AutoTokenizer.from_pretrained(tiny_model("mixtral"))


class Played:
    """A model that says its last token again and again; to token 9 it says one thing more and ends."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[list[int]], Sampling]] = []

    def __call__(self, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
        self.asked.append((prompts, sampling))
        return [[9, END] if prompt[-1] == 9 else prompt[-1:] * sampling.max_tokens for prompt in prompts]


def generated(prompts: Calibration, number: int = 2, batch_size: int = 2, prompt_tokens: int = 2) -> SelfGenerated:
    size = {"num_sequences": number, "sequence_length": 6, "batch_size": batch_size}
    return SelfGenerated(
        prompts=prompts, prompt_tokens=prompt_tokens, answer_tokens=3, temperature=0.5, top_p=0.9, **size
    )


def of_rows(folder: Path, *rows: list[int]) -> LocalText:
    """Prompts from a file, as far as a source of prompts; what it says of its size is of no account."""
    file = write_rows(folder / "prompts.jsonl", [{"input_ids": row} for row in rows])
    return LocalText(path=str(file), num_sequences=77, sequence_length=99, batch_size=33)


def test_a_prompt_and_its_answer_are_a_document(tmp_path: Path, tokenizer: Any) -> None:
    """1 2 | 2 2 2 and an end of text are six tokens; the first two tokens of a document are its prompt."""
    prompts = of_rows(tmp_path, [1, 2, 3, 4], [5, 6])
    tokens = generated(prompts).tokens(tokenizer, 0, None, Played())
    assert sorted(torch.cat(tokens.batches_BT).tolist()) == [[1, 2, 2, 2, 2, END], [5, 6, 6, 6, 6, END]]


def test_an_answer_that_ended_by_itself_has_one_end_of_text(tmp_path: Path, tokenizer: Any) -> None:
    """Guards against the end that the model gave beside the one that joining puts there."""
    tokens = generated(of_rows(tmp_path, [9], [9]), 1).tokens(tokenizer, 0, None, Played())
    assert tokens.batches_BT[0].tolist() == [[9, 9, END, 9, 9, END]]


def test_the_model_is_asked_no_more_than_is_needed(tmp_path: Path, tokenizer: Any) -> None:
    model = Played()
    generated(of_rows(tmp_path, *([i, i] for i in range(1, 30))), 2).tokens(tokenizer, 0, None, model)
    ((prompts, sampling),) = model.asked
    assert len(prompts) == 2
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (3, 0.5, 0.9)


def test_every_batch_is_sampled_by_a_seed_of_its_own(tmp_path: Path, tokenizer: Any) -> None:
    """With one seed, equal prompts in two batches would get equal answers."""
    prompts, seeds = of_rows(tmp_path, *[[1, 1]] * 4), dict[int, list[int]]()
    for seed in (0, 0, 1):
        model = Played()
        generated(prompts, 4).tokens(tokenizer, seed, None, model)
        found = [sampling.seed for _, sampling in model.asked]
        assert seeds.setdefault(seed, found) == found
    assert len({*seeds[0], *seeds[1]}) == 4


def test_a_recovery_trains_on_further_answers(tokenizer: Any) -> None:
    """What calibration took comes first again, with the same seeds, so that a cache has it."""
    toy = ToyText(domain="maths", num_sequences=1, sequence_length=2, batch_size=1)

    class Words:
        eos_token_id = END

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [1 + len(word) for word in text.split()]}

    first, both = Played(), Played()
    seen = torch.cat(generated(toy, 4).tokens(Words(), 0, None, first).batches_BT)
    trained = training_sequences(generated(toy, 4), Words(), 0, 6, both)
    assert both.asked[: len(first.asked)] == first.asked
    everything = torch.cat(generated(toy, 10).tokens(Words(), 0, None, Played()).batches_BT)
    assert torch.equal(torch.cat([seen, trained]), everything)


def test_chat_prompts_that_are_too_long_are_left_out_and_counted(tmp_path: Path, tokenizer: Any) -> None:
    """A prompt that was cut would lose what opens the answer."""
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}w2"
    chats = [{"messages": [{"role": "user", "content": text}]} for text in ("w5", "w6 w7 w8", "w9", "w1")]
    file = write_rows(tmp_path / "a.jsonl", chats)
    prompts = LocalText(path=str(file), num_sequences=1, sequence_length=2, batch_size=1)
    tokens = generated(prompts, 3).tokens(tokenizer, 0, None, Played())
    assert sorted(row[0] for row in torch.cat(tokens.batches_BT).tolist()) == [1, 5, 9]
    assert tokens.notes == ["calibration.prompt_tokens=2: 1 prompts are longer, up to 4 tokens, and were left out"]


def test_too_few_prompts_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"num_sequences=3 of 6 tokens: the text holds only 2"):
        generated(of_rows(tmp_path, [1, 2], [3, 4]), 3).tokens(tokenizer, 0, None, Played())


def test_answers_are_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a model's answers are no prompts"):
        generated(generated(of_rows(tmp_path, [1, 2])))
