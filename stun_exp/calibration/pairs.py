"""Calibration with source and target text, for encoder-decoders.

Shapes: B pairs of a batch, T tokens of a source or of a target.
"""

import json
import random
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from pydantic import field_validator

from stun_exp.calibration.protocol import Answer, Calibration, CalibrationTokens
from stun_exp.calibration.text import checked_text, rows_of, text_file, token_ids
from stun_exp.utils.paths import expanded

Pair = tuple[list[int], list[int]]


class Pairs(Calibration):
    """A .jsonl file with a pair on each line: `source` and `target` as text, or `input_ids` and `labels` as tokens.

    The decoder reads a target as in training: behind its start token, and without its last one. `sequence_length` caps
    sources and targets: what is longer is cut. All sources of a batch have one length, and all its targets one.
    """

    path: str

    @field_validator("path")
    @classmethod
    def _is_text(cls, path: str) -> str:
        return text_file(path, ".jsonl")

    def sequences(self, tokenizer: Any, seed: int) -> Iterator[list[int]]:
        raise ValueError(
            "recovery trains decoder-only models alone; with calibration=pairs pass recovery=none (nor is it a source "
            "of a mixture, or of prompts: these are plain text)"
        )

    def tokens(
        self, tokenizer: Any, seed: int, decoder_start: int | None = None, answer: Answer | None = None
    ) -> CalibrationTokens:
        import torch

        if decoder_start is None:
            raise ValueError(
                "calibration=pairs has sources and targets, and the model is decoder-only, which reads plain text: "
                "pass calibration=local calibration.path=FILE"
            )
        rows = rows_of(expanded(self.path), f"calibration.path={self.path}")
        found = [self._pair(row, where, tokenizer, decoder_start) for where, row in rows]
        if len(found) < self.num_sequences:
            raise ValueError(
                f"calibration.num_sequences={self.num_sequences}: calibration.path={self.path} holds only {len(found)} "
                "pairs; lower calibration.num_sequences, or give more"
            )
        drawn, longest = random.Random(seed).sample(found, self.num_sequences), self.sequence_length
        cut = sum(max(len(source), len(target)) > longest for source, target in drawn)
        pairs = [(source[:longest], target[:longest]) for source, target in drawn]
        batches = self._batches(pairs)
        return CalibrationTokens(
            batches_BT=[torch.tensor([source for source, _ in batch]) for batch in batches],
            targets_BT=[torch.tensor([target for _, target in batch]) for batch in batches],
            sha256=sha256(json.dumps(pairs).encode()).hexdigest(),
            notes=self._cut(cut),
        )

    def _cut(self, count: int) -> list[str]:
        if not count:
            return []
        return [
            f"calibration.path={self.path}: {count} of {self.num_sequences} pairs have a source or a target of more "
            f"than calibration.sequence_length={self.sequence_length} tokens, and were cut"
        ]

    def _pair(self, row: Mapping[str, Any], where: str, tokenizer: Any, decoder_start: int) -> Pair:
        """The tokens that the encoder and the decoder read of one line."""
        if isinstance(row.get("source"), str) and isinstance(row.get("target"), str):
            source_text, target_text = (checked_text(row[field], where) for field in ("source", "target"))
            source, target = tokenizer(source_text)["input_ids"], tokenizer(text_target=target_text)["input_ids"]
        elif isinstance(row.get("input_ids"), list) and isinstance(row.get("labels"), list):
            source, target = (token_ids(row, field, where, tokenizer) for field in ("input_ids", "labels"))
        else:
            raise ValueError(f"{where}: needs `source` and `target`, or `input_ids` and `labels`")
        if not (source and target):
            raise ValueError(f"{where}: the source or the target is empty")
        return source, [decoder_start, *target[:-1]]

    def _batches(self, pairs: list[Pair]) -> list[list[Pair]]:
        """The pairs in batches of equal lengths, so that none needs padding."""
        alike: dict[tuple[int, int], list[Pair]] = {}
        for source, target in pairs:
            alike.setdefault((len(source), len(target)), []).append((source, target))
        size = self.batch_size
        return [group[i : i + size] for group in alike.values() for i in range(0, len(group), size)]
