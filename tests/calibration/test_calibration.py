"""Calibration text becomes whole sequences: seeded, hashed, and refused by name where it will not do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from stun_exp.calibration.local import LocalText
from stun_exp.calibration.protocol import Calibration
from stun_exp.calibration.toy import ToyText


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Callable[[str], Path]) -> Any:
    """Words w0 ... w63 are the ids 0 ... 63, and w0 ends a text."""
    return AutoTokenizer.from_pretrained(tiny_model("mixtral"))


def words(*ids: int) -> str:
    return " ".join(f"w{i}" for i in ids)


def local(path: Path, num_sequences: int = 2, sequence_length: int = 4, batch_size: int = 3) -> LocalText:
    return LocalText(
        path=str(path), num_sequences=num_sequences, sequence_length=sequence_length, batch_size=batch_size
    )


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(calibration: Calibration, tokenizer: Any, seed: int = 0) -> list[list[int]]:
    return torch.cat(calibration.tokens(tokenizer, seed).batches_BT).tolist()


def test_a_text_file_is_cut_into_whole_sequences(tmp_path: Path, tokenizer: Any) -> None:
    file = tmp_path / "a.txt"
    file.write_text(words(*range(1, 11)))
    assert rows(local(file), tokenizer) == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_documents_are_joined_by_the_end_of_text(tmp_path: Path, tokenizer: Any) -> None:
    """As Lu et al. do: a sequence may hold the end of one document and the start of the next."""
    file = jsonl(tmp_path / "a.jsonl", {"text": words(5, 5, 5)}, {"text": words(5, 5, 5)})
    assert rows(local(file), tokenizer) == [[5, 5, 5, 0], [5, 5, 5, 0]]


def test_text_and_input_ids_are_the_same(tmp_path: Path, tokenizer: Any) -> None:
    ids = [[i, i + 1, i + 2] for i in range(1, 20)]
    as_text = jsonl(tmp_path / "text.jsonl", *({"text": words(*row)} for row in ids))
    as_ids = jsonl(tmp_path / "ids.jsonl", *({"input_ids": row} for row in ids))
    hashes = {local(file, 10).tokens(tokenizer, 0).sha256 for file in (as_text, as_ids)}
    assert len(hashes) == 1


def test_the_seed_decides_and_the_hash_tells(tmp_path: Path, tokenizer: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", *({"input_ids": [i] * 5} for i in range(1, 50)))
    hashes = [local(file, 10).tokens(tokenizer, seed).sha256 for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_hash_is_of_the_tokens_not_of_their_batches(tmp_path: Path, tokenizer: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", *({"input_ids": [i] * 4} for i in range(1, 50)))
    hashes = {local(file, 10, batch_size=size).tokens(tokenizer, 0).sha256 for size in (1, 3, 10)}
    assert len(hashes) == 1


def test_batches_hold_all_sequences_whole(tmp_path: Path, tokenizer: Any) -> None:
    file = jsonl(tmp_path / "a.jsonl", *({"input_ids": [i] * 4} for i in range(1, 50)))
    tokens = local(file, 7).tokens(tokenizer, 0)
    assert [tuple(batch.shape) for batch in tokens.batches_BT] == [(3, 4), (3, 4), (1, 4)]
    assert tokens.num_tokens == 28
    assert {batch.dtype for batch in tokens.batches_BT} == {torch.int64}


def test_blank_lines_are_skipped_but_counted(tmp_path: Path, tokenizer: Any) -> None:
    """The line that an error names is the one an editor shows."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"input_ids": [1, 2, 3, 4]}\n\n\n{"words": 1}\n')
    with pytest.raises(ValueError, match=r"a.jsonl, line 4: needs a `text`, a `messages` or an `input_ids` field"):
        local(file).tokens(tokenizer, 0)


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path, tokenizer: Any) -> None:
    """JSON allows U+2028 and U+0085 inside strings, and web text holds them; str.splitlines would cut there."""
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "w1\u2028w2\u0085w3 w4 w5 w6 w7"}, ensure_ascii=False) + "\n")
    assert rows(local(file), tokenizer) == [[1, 2, 3, 4], [5, 6, 7, 0]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "a.txt: the file is empty"),
        ("a.jsonl", "\n\n", "a.jsonl: the file is empty"),
        ("a.jsonl", '{"text": ""}\n', "a.jsonl: the file is empty"),
        ("a.csv", "w1", r"must end in .txt or .jsonl"),
        ("a.jsonl", '{"text": "w1"}\n{"text": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '["w1"]\n', "a.jsonl, line 1: needs a `text`, a `messages` or an `input_ids` field"),
        ("a.jsonl", '{"text": 3}\n', "a.jsonl, line 1: needs a `text`, a `messages` or an `input_ids` field"),
        ("a.jsonl", '{"input_ids": [1, 64]}\n', "line 1: `input_ids` must be integers from 0 to 63"),
        ("a.jsonl", '{"input_ids": [-1]}\n', "line 1: `input_ids` must be integers from 0 to 63"),
        ("a.jsonl", '{"input_ids": ["w1"]}\n', "line 1: `input_ids` must be integers from 0 to 63"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, tokenizer: Any, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        local(tmp_path / name).tokens(tokenizer, 0)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)path.*no such file"):
        local(tmp_path / "nowhere.txt")


def test_too_little_text_says_how_much_there_is(tmp_path: Path, tokenizer: Any) -> None:
    """9 words and an end make 2 sequences of 4: three must not become two in silence."""
    (tmp_path / "a.txt").write_text(words(*range(1, 10)))
    with pytest.raises(ValueError, match=r"(?s)calibration.num_sequences=3 of 4 tokens.*holds only 2; lower"):
        local(tmp_path / "a.txt", 3).tokens(tokenizer, 0)


class Letters:
    """A tokenizer that knows every text: one token a letter."""

    eos_token_id = 0

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}


def test_toy_text_is_seeded() -> None:
    toy = ToyText(domain="all", num_sequences=3, sequence_length=20, batch_size=2)
    hashes = [toy.tokens(Letters(), seed).sha256 for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    maths = toy.model_copy(update={"domain": "maths"})
    assert maths.tokens(Letters(), 0).sha256 not in hashes
