"""Files of the user's: every kind, whole folders, chats, rows of tokens; what is not used is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from row_files import write_rows
from transformers import AutoTokenizer

from stun_exp.calibration.local import LocalText
from stun_exp.calibration.text import ROW_ENDINGS

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}w1 {{ m.content }} {% elif m.role == 'assistant' %}"
    "w2 {{ m.content }} {% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}w2{% endif %}"
)
"""w1 before what the user says, w2 before what the model says."""
CHAT = [
    {"role": "user", "content": "w10"},
    {"role": "assistant", "content": "w20 w21"},
    {"role": "user", "content": "w11"},
    {"role": "assistant", "content": "w22"},
]


@pytest.fixture
def tokenizer(tiny_model: Callable[[str], Path]) -> Any:
    """Words w0 ... w63 are the ids 0 ... 63, and w0 ends a text."""
    return AutoTokenizer.from_pretrained(tiny_model("mixtral"))


def local(path: Path, num_sequences: int = 1, sequence_length: int = 4) -> LocalText:
    return LocalText(path=str(path), num_sequences=num_sequences, sequence_length=sequence_length, batch_size=1)


def drawn(calibration: LocalText, tokenizer: Any, seed: int = 0) -> list[list[int]]:
    return torch.cat(calibration.tokens(tokenizer, seed).batches_BT).tolist()


@pytest.mark.parametrize("ending", ROW_ENDINGS)
def test_every_kind_of_file_gives_the_same_sequences(tmp_path: Path, tokenizer: Any, ending: str) -> None:
    file = write_rows(tmp_path / f"a{ending}", [{"text": "w1 w2 w3"}, {"text": "w4 w5 w6"}])
    calibration = local(file, 2)
    assert sorted(drawn(calibration, tokenizer)) == [[1, 2, 3, 0], [4, 5, 6, 0]]
    assert calibration.reads() == [file]


def test_a_folder_gives_the_documents_of_all_its_files(tmp_path: Path, tokenizer: Any) -> None:
    """All of them are in the cache's key, so that a file that is added or changed is other text."""
    (tmp_path / "b").mkdir()
    (tmp_path / "README.md").write_text("w9 w9 w9")
    (tmp_path / "a.txt").write_text("w1 w2 w3")
    write_rows(tmp_path / "b/c.parquet", [{"text": "w4 w5 w6"}])
    calibration = local(tmp_path, 2)
    assert sorted(drawn(calibration, tokenizer)) == [[1, 2, 3, 0], [4, 5, 6, 0]]
    assert calibration.reads() == [tmp_path / "a.txt", tmp_path / "b/c.parquet"]


def test_an_error_in_a_folder_names_the_file(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/c.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=rf"calibration.path={tmp_path}/b/c.jsonl, line 1: needs a `text`"):
        drawn(local(tmp_path), tokenizer)


def test_a_folder_without_such_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("w1")
    with pytest.raises(ValueError, match=r"(?s)path.*no file in this folder ends in .txt or .jsonl"):
        local(tmp_path)


def test_a_chat_is_read_through_the_template(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATE
    file = write_rows(tmp_path / "a.jsonl", [{"messages": CHAT}])
    assert drawn(local(file, 1, 10), tokenizer) == [[1, 10, 2, 20, 21, 1, 11, 2, 22, 0]]


def test_a_table_fills_fields_that_a_message_has_not(tmp_path: Path, tokenizer: Any) -> None:
    """Parquet gives each message the fields of all others, as null; templates go by which fields there are."""
    tokenizer.chat_template = "{% for m in messages %}{{ 'w9' if 'name' in m else m.content }} {% endfor %}"
    chat = [{"role": "user", "content": "w1"}, {"role": "user", "content": "w2", "name": "x"}]
    file = write_rows(tmp_path / "a.parquet", [{"messages": [chat[1], chat[0]]}])
    assert drawn(local(file, 1, 3), tokenizer) == [[9, 1, 0]]


def test_a_chat_needs_a_template(tmp_path: Path, tokenizer: Any) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"messages": CHAT}])
    with pytest.raises(ValueError, match=r"line 1: has chat `messages`, .* no chat template; give .*\.jinja") as error:
        drawn(local(file), tokenizer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (["w1"], "line 1: each of `messages` needs a `role` and a `content` that are text"),
        ([{"role": "user", "content": None}], "line 1: each of `messages` needs a `role` and a `content`"),
        ([{"role": "tool", "content": "w1"}], r"line 1: the chat template does not take these .*no such role"),
        ([{"role": "user", "content": "\ud800"}], r"line 1: not text \(half of a character, at 0\)"),
    ],
)
def test_a_chat_that_cannot_be_read_is_named(tmp_path: Path, tokenizer: Any, messages: Any, message: str) -> None:
    tokenizer.chat_template = TEMPLATE
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(ValueError, match=message):
        drawn(local(tmp_path / "a.jsonl"), tokenizer)


def test_openings_are_of_documents_and_a_chat_is_whole_up_to_its_last_answer(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATE
    rows = [{"text": "w30 w31 w32 w33 w34"}, {"messages": CHAT}, {"input_ids": [40, 41, 42, 43]}, {"text": "w50"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(local(tmp_path / "a.jsonl").openings(tokenizer, 0, 3, 100))
    assert sorted(found) == [[1, 10, 2, 20, 21, 1, 11, 2], [30, 31, 32], [40, 41, 42], [50]]


def test_rows_of_exactly_the_length_stay_whole_and_in_order(tmp_path: Path, tokenizer: Any) -> None:
    """They used to be joined with ends of text between them: each began one token later than the one before."""
    rows = [[i, i + 1, i + 2, i + 3] for i in range(1, 40, 4)]
    file = write_rows(tmp_path / "a.jsonl", [{"input_ids": row} for row in rows])
    tokens = local(file, 10).tokens(tokenizer, 0)
    assert torch.cat(tokens.batches_BT).tolist() == rows
    assert tokens.notes == []


def test_rows_beyond_those_that_are_asked_for_are_named(tmp_path: Path, tokenizer: Any) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"input_ids": [i] * 4} for i in range(1, 8)])
    tokens = local(file, 5).tokens(tokenizer, 3)
    assert torch.cat(tokens.batches_BT)[:, 0].tolist() == [1, 2, 3, 4, 5]
    (note,) = tokens.notes
    assert "all 7 rows of input_ids have calibration.sequence_length=4 tokens" in note
    assert "the first 5 of them; the other 2 are not used" in note


def test_rows_of_the_length_among_others_are_joined_and_that_is_said(tmp_path: Path, tokenizer: Any) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"input_ids": [5] * 4}, {"input_ids": [5] * 5}])
    tokens = local(file, 2).tokens(tokenizer, 0)
    assert sorted(torch.cat(tokens.batches_BT).tolist()) == [[0, 5, 5, 5], [5, 5, 5, 5]]
    joined, left = tokens.notes
    assert "1 of 2 documents are input_ids of calibration.sequence_length=4 tokens" in joined
    assert "joined, with the end of text between them" in joined
    assert "the last 3 of 11 tokens do not fill a sequence" in left


def test_text_of_exactly_the_length_is_joined_like_any_text(tmp_path: Path, tokenizer: Any) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"text": "w5 w5 w5 w5"}] * 4)
    tokens = local(file, 5).tokens(tokenizer, 0)
    assert torch.cat(tokens.batches_BT).eq(0).sum() == 4
    assert tokens.notes == []
