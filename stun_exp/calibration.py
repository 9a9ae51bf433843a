"""Calibration text to token batches: seeded, and hashed so that two runs can be told to have seen the same tokens."""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stun_exp.component import Component

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CalibrationTokens:
    """Whole sequences of equal length, in batches (B, T) of int64."""

    batches_BT: "list[Tensor]"
    sha256: str

    @property
    def num_tokens(self) -> int:
        return sum(batch.numel() for batch in self.batches_BT)


class Calibration(Component):
    """How much text; where it comes from is the subclass's `documents`."""

    num_sequences: int = Field(ge=1)
    sequence_length: int = Field(ge=2)
    batch_size: int = Field(ge=1)

    def sequences(self, tokenizer: Any, seed: int) -> Iterator[list[int]]:
        """Sequences of `sequence_length` token ids, at most `num_sequences`."""
        raise AssertionError("a source of calibration text defines this")

    def tokens(self, tokenizer: Any, seed: int) -> CalibrationTokens:
        """The run's calibration tokens; ValueError if the text is too short for what is asked."""
        import torch

        rows = list(self.sequences(tokenizer, seed))
        if len(rows) < self.num_sequences:
            raise ValueError(
                f"calibration.num_sequences={self.num_sequences} of {self.sequence_length} tokens: the text holds only "
                f"{len(rows)}; lower calibration.num_sequences or calibration.sequence_length, or give more text"
            )
        tokens = torch.tensor(rows, dtype=torch.int64)
        digest = sha256(tokens.numpy().tobytes()).hexdigest()
        return CalibrationTokens(list(torch.split(tokens, self.batch_size)), digest)

    def _blocks(self, documents: Iterable[list[int]], tokenizer: Any) -> Iterator[list[int]]:
        """Documents joined by the end-of-text token and cut into sequences, as Lu et al. do."""
        buffer: list[int] = []
        for document in documents:
            buffer += document
            if tokenizer.eos_token_id is not None:
                buffer.append(tokenizer.eos_token_id)
            while len(buffer) >= self.sequence_length:
                yield buffer[: self.sequence_length]
                buffer = buffer[self.sequence_length :]


class ToyText(Calibration):
    """Text of the toy model's world, from a stream of documents that it was not trained on."""

    def sequences(self, tokenizer: Any, seed: int) -> Iterator[list[int]]:
        from stun_exp.toy.text import calibration_documents

        documents = (tokenizer(text)["input_ids"] for text in calibration_documents(seed))
        return islice(self._blocks(documents, tokenizer), self.num_sequences)


class LocalText(Calibration):
    """A file: .txt (one document), or .jsonl with `text` or with `input_ids` on each line."""

    path: str

    def sequences(self, tokenizer: Any, seed: int) -> Iterator[list[int]]:
        blocks = list(self._blocks(self._documents(tokenizer), tokenizer))
        # Blocks and not documents are drawn, so that the seed matters for one long document too.
        random.Random(seed).shuffle(blocks)
        return iter(blocks[: self.num_sequences])

    def _documents(self, tokenizer: Any) -> list[list[int]]:
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"calibration.path={self.path}: no such file")
        if file.suffix not in {".txt", ".jsonl"}:
            raise ValueError(f"calibration.path={self.path}: must end in .txt or .jsonl")
        if file.suffix == ".txt":
            documents = [tokenizer(file.read_text(encoding="utf-8"))["input_ids"]]
        else:
            # Not splitlines: JSON may hold other line separators as they are, U+2028 for one.
            lines = enumerate(file.read_text(encoding="utf-8").split("\n"), 1)
            documents = [self._row(line, number, tokenizer) for number, line in lines if line.strip()]
        documents = [document for document in documents if document]
        if not documents:
            raise ValueError(f"calibration.path={self.path}: the file is empty; give text to calibrate on")
        return documents

    def _row(self, line: str, number: int, tokenizer: Any) -> list[int]:
        where = f"calibration.path={self.path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error})") from error
        if isinstance(row, dict) and isinstance(row.get("text"), str):
            ids: list[int] = tokenizer(row["text"])["input_ids"]
            return ids
        if not (isinstance(row, dict) and isinstance(row.get("input_ids"), list)):
            raise ValueError(f"{where}: needs a `text` or an `input_ids` field")
        if not all(isinstance(i, int) and 0 <= i < len(tokenizer) for i in row["input_ids"]):
            raise ValueError(f"{where}: `input_ids` must be integers from 0 to {len(tokenizer) - 1}")
        return list(row["input_ids"])


class C4(Calibration):
    """The first shard of C4: random crops of documents longer than a sequence, as in Wanda, SparseGPT and OWL."""

    shard: str
    """Data file inside the C4 repository."""

    def sequences(self, tokenizer: Any, seed: int) -> Iterator[list[int]]:
        from datasets import load_dataset

        try:
            rows = load_dataset("allenai/c4", data_files={"train": self.shard}, split="train")
        except Exception as error:  # the datasets library wraps a missing network in many classes
            raise FileNotFoundError(
                f"calibration=c4: {self.shard} is neither cached nor reachable ({type(error).__name__}); fetch it "
                "once with a network, or use calibration=local calibration.path=FILE"
            ) from error
        generator = random.Random(seed)
        made = 0
        for index in generator.sample(range(len(rows)), len(rows)):
            ids = tokenizer(rows[index]["text"])["input_ids"]
            if len(ids) > self.sequence_length:
                start = generator.randint(0, len(ids) - self.sequence_length - 1)
                yield ids[start : start + self.sequence_length]
                made += 1
            if made == self.num_sequences:
                return
