"""Text in a file of the user's."""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import field_validator

from stun_exp.calibration.protocol import Calibration
from stun_exp.calibration.text import checked_text, rows_of, text_file, text_of, token_ids
from stun_exp.utils.paths import expanded


class LocalText(Calibration):
    """A file: .txt (one document), or .jsonl with `text` or with `input_ids` on each line."""

    path: str

    def sequences(self, tokenizer: Any, seed: int) -> Iterator[list[int]]:
        blocks = list(self.blocks(self._documents(tokenizer), tokenizer))
        # Blocks and not documents are drawn, so that the seed matters for one long document too.
        random.Random(seed).shuffle(blocks)
        return iter(blocks[: self.num_sequences])

    @field_validator("path")
    @classmethod
    def _is_text(cls, path: str) -> str:
        return text_file(path, ".txt", ".jsonl")

    def _documents(self, tokenizer: Any) -> list[list[int]]:
        file, name = expanded(self.path), f"calibration.path={self.path}"
        if file.suffix == ".txt":
            documents = [tokenizer(text_of(file, name))["input_ids"]]
        else:
            documents = [self._row(row, where, tokenizer) for where, row in rows_of(file, name)]
        documents = [document for document in documents if document]
        if not documents:
            raise ValueError(f"{name}: the file is empty; give text to calibrate on")
        return documents

    def _row(self, row: Mapping[str, Any], where: str, tokenizer: Any) -> list[int]:
        if isinstance(row.get("text"), str):
            ids: list[int] = tokenizer(checked_text(row["text"], where))["input_ids"]
            return ids
        if not isinstance(row.get("input_ids"), list):
            raise ValueError(f"{where}: needs a `text` or an `input_ids` field")
        return token_ids(row, "input_ids", where, tokenizer)

    def reads(self) -> list[Path]:
        return [expanded(self.path)]
