"""Calibration text to token batches: seeded, and hashed so that two runs can be told to have seen the same tokens.

Shapes: B sequences of a batch, T tokens.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.data.sets import DataSet


@dataclass(frozen=True)
class CalibrationTokens:
    """Whole sequences in batches of int64, those of a batch of equal length: no padding, which experts must not see."""

    batches_BT: "list[Tensor]"
    sha256: str
    targets_BT: "list[Tensor]" = field(default_factory=list)
    """What the decoder of an encoder-decoder reads of each batch; empty for a decoder-only model."""

    @property
    def num_tokens(self) -> int:
        return sum(batch.numel() for batch in (*self.batches_BT, *self.targets_BT))


def decoder_start(config: Any) -> int | None:
    """The token that an encoder-decoder's decoder begins with; None for a decoder-only model."""
    if not config.is_encoder_decoder:
        return None
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        raise ValueError(
            f"model_type={config.model_type}: config.json has no decoder_start_token_id, with which every target "
            "begins; add it (most such models begin with their padding token, pad_token_id)"
        )
    return int(start)


class Calibration(Component):
    """How much text; where it comes from is the subclass's `documents`."""

    num_sequences: int = Field(ge=1)
    sequence_length: int = Field(ge=2)
    batch_size: int = Field(ge=1)

    def sequences(self, tokenizer: Any, seed: int) -> Iterator[list[int]]:
        """Sequences of `sequence_length` token ids, at most `num_sequences`."""
        raise AssertionError("a source of calibration text defines this")

    def tokens(self, tokenizer: Any, seed: int, decoder_start: int | None = None) -> CalibrationTokens:
        """The run's calibration tokens; ValueError if the text is too short for what is asked, or of the wrong kind.

        `decoder_start` is the token that the decoder of an encoder-decoder begins with.
        """
        import torch

        if decoder_start is not None:
            raise ValueError(
                "this calibration gives plain text, and the model is an encoder-decoder, which needs a source and a "
                "target: pass calibration=pairs calibration.path=FILE.jsonl"
            )
        rows = list(self.sequences(tokenizer, seed))
        if len(rows) < self.num_sequences:
            raise ValueError(
                f"calibration.num_sequences={self.num_sequences} of {self.sequence_length} tokens: the text holds only "
                f"{len(rows)}; lower calibration.num_sequences or calibration.sequence_length, or give more text"
            )
        tokens = torch.tensor(rows, dtype=torch.int64)
        digest = sha256(tokens.numpy().tobytes()).hexdigest()
        return CalibrationTokens(list(torch.split(tokens, self.batch_size)), digest)

    def data_sets(self) -> "list[DataSet]":
        """What it reads of data sets of the hub."""
        return []

    def find(self) -> None:
        """MissingData if what it reads is neither on this machine nor to be had."""

    def blocks(self, documents: Iterable[list[int]], tokenizer: Any) -> Iterator[list[int]]:
        """Documents joined by the end-of-text token and cut into sequences, as Lu et al. do."""
        buffer: list[int] = []
        for document in documents:
            buffer += document
            if tokenizer.eos_token_id is not None:
                buffer.append(tokenizer.eos_token_id)
            while len(buffer) >= self.sequence_length:
                yield buffer[: self.sequence_length]
                buffer = buffer[self.sequence_length :]
