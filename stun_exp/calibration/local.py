"""Text in files of the user's."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import field_validator

from stun_exp.calibration.chat import conversation_ids
from stun_exp.calibration.protocol import Answer, Calibration, Drawn
from stun_exp.calibration.text import TEXT_ENDINGS, checked_text, rows_of, text_files, text_of, token_ids
from stun_exp.utils.paths import expanded


class _Document(NamedTuple):
    ids: list[int]
    is_tokens: bool
    """Whether the file gave them as tokens."""


class LocalText(Calibration):
    """A file, or all files in a folder: .txt is one document; rows have `text`, chat `messages` or `input_ids`.

    Documents are joined and cut into sequences, but for a set of `input_ids` that all have `sequence_length` already:
    these are sequences as they are, in their order.
    """

    path: str

    @field_validator("path")
    @classmethod
    def _is_text(cls, path: str) -> str:
        text_files(path, *TEXT_ENDINGS)
        return path

    def reads(self) -> list[Path]:
        return text_files(self.path, *TEXT_ENDINGS)

    def draw(self, tokenizer: Any, seed: int, answer: Answer | None = None) -> Drawn:
        documents = list(self._documents(tokenizer))
        if not documents:
            raise ValueError(f"calibration.path={self.path}: the file is empty; give text to calibrate on")
        whole = [one.ids for one in documents if one.is_tokens and len(one.ids) == self.sequence_length]
        if len(whole) == len(documents):
            return Drawn(whole[: self.num_sequences], notes=self._rows_left(len(whole)))
        blocks = list(self.blocks((one.ids for one in documents), tokenizer))
        notes = self._tokens_left(documents, len(whole), len(blocks), tokenizer)
        # Blocks and not documents are drawn, so that the seed matters for one long document too.
        random.Random(seed).shuffle(blocks)
        return Drawn(blocks[: self.num_sequences], notes=notes)

    def openings(self, tokenizer: Any, seed: int, max_tokens: int, total_tokens: int) -> Iterator[list[int]]:
        """Openings of documents; of a chat all that comes before the last answer, however long it is."""
        documents = list(self._documents(tokenizer, max_tokens))
        random.Random(seed).shuffle(documents)
        return (one.ids for one in documents)

    def _rows_left(self, count: int) -> list[str]:
        if count <= self.num_sequences:
            return []
        return [
            f"calibration.path={self.path}: all {count} rows of input_ids have calibration.sequence_length="
            f"{self.sequence_length} tokens, so they are taken as they are and in order, whatever seed says: the first "
            f"{self.num_sequences} of them; the other {count - self.num_sequences} are not used"
        ]

    def _tokens_left(
        self, documents: Sequence[_Document], num_whole: int, num_blocks: int, tokenizer: Any
    ) -> list[str]:
        """What to say of documents that are joined: that some would have been sequences already, and what is left."""
        notes = []
        if num_whole:
            notes.append(
                f"calibration.path={self.path}: {num_whole} of {len(documents)} documents are input_ids of "
                f"calibration.sequence_length={self.sequence_length} tokens, and the others are not: all are joined, "
                "with the end of text between them, and cut anew; to keep rows whole, give these alone"
            )
        total = sum(len(one.ids) + (tokenizer.eos_token_id is not None) for one in documents)
        if left := total - num_blocks * self.sequence_length:
            notes.append(
                f"calibration.path={self.path}: the last {left:,} of {total:,} tokens do not fill a sequence of "
                f"calibration.sequence_length={self.sequence_length}, and are not used"
            )
        return notes

    def _documents(self, tokenizer: Any, prompt_tokens: int | None = None) -> Iterator[_Document]:
        """The documents that are not empty; with `prompt_tokens` of each what a model is to go on with."""
        folder = expanded(self.path)
        for file in self.reads():
            inside = "" if file == folder else f"/{file.relative_to(folder).as_posix()}"
            name = f"calibration.path={self.path.rstrip('/') if inside else self.path}{inside}"
            if file.suffix == ".txt":
                found = iter([_Document(tokenizer(text_of(file, name))["input_ids"][:prompt_tokens], False)])
            else:
                found = (_document(row, where, tokenizer, prompt_tokens) for where, row in rows_of(file, name))
            yield from (document for document in found if document.ids)


def _document(row: Mapping[str, Any], where: str, tokenizer: Any, prompt_tokens: int | None) -> _Document:
    if isinstance(row.get("text"), str):
        return _Document(tokenizer(checked_text(row["text"], where))["input_ids"][:prompt_tokens], False)
    if isinstance(row.get("messages"), list):
        return _Document(conversation_ids(row["messages"], where, tokenizer, prompt_tokens is not None), False)
    if isinstance(row.get("input_ids"), list):
        return _Document(token_ids(row, "input_ids", where, tokenizer)[:prompt_tokens], True)
    raise ValueError(f"{where}: needs a `text`, a `messages` or an `input_ids` field")
