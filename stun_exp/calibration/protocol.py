"""Calibration text to token batches: seeded, and hashed so that two runs can be told to have seen the same tokens.

Shapes: B sequences of a batch, T tokens.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

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
    domains: list[str] = field(default_factory=list)
    """Of each sequence the source of a mixture that it is from; empty for text of one source."""
    notes: list[str] = field(default_factory=list)
    """What the user should know of the text: what of it is not used, say."""

    @property
    def num_tokens(self) -> int:
        return sum(batch.numel() for batch in (*self.batches_BT, *self.targets_BT))


@dataclass(frozen=True)
class Drawn:
    """Sequences of one length, and what is known of them (see `CalibrationTokens`)."""

    sequences: list[list[int]]
    domains: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sampling:
    """How a model goes on with a text: at most so many tokens, the likeliest ones at temperature 0."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int


class Answer(Protocol):
    """The unpruned model, asked."""

    def __call__(self, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
        """What it says to each prompt, up to where it ends by itself, with what it ends with."""
        ...


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
    """How much text; where it comes from is the subclass's `sequences`, or its `draw` if there is more to be said."""

    num_sequences: int = Field(ge=1)
    sequence_length: int = Field(ge=2)
    batch_size: int = Field(ge=1)

    def sequences(self, tokenizer: Any, seed: int) -> Iterator[list[int]]:
        """Sequences of `sequence_length` token ids, at most `num_sequences`; of more of them, these are the first."""
        raise AssertionError("a source of calibration text defines this, or `draw`")

    def draw(self, tokenizer: Any, seed: int, answer: Answer | None = None) -> Drawn:
        """The same, with what is to be said of them; `answer` is there for a source that `asks_model`."""
        return Drawn(list(self.sequences(tokenizer, seed)))

    def openings(self, tokenizer: Any, seed: int, max_tokens: int, total_tokens: int) -> Iterator[list[int]]:
        """Texts of at most `max_tokens` for a model to go on with, enough for `total_tokens` with what it adds.

        Passages from anywhere, where a source does not know where its documents begin.
        """
        number = -(-total_tokens // max_tokens)
        passages = self.model_copy(update={"num_sequences": number, "sequence_length": max_tokens})
        return iter(passages.draw(tokenizer, seed).sequences)

    @property
    def most_tokens(self) -> int:
        """Of all sequences together."""
        return self.num_sequences * self.sequence_length

    def parts(self) -> "list[Calibration]":
        """This, and all sources that it is made of."""
        return [self]

    def asks_model(self) -> bool:
        """Whether the unpruned model is run for the text."""
        return False

    def tokens(
        self, tokenizer: Any, seed: int, decoder_start: int | None = None, answer: Answer | None = None
    ) -> CalibrationTokens:
        """The run's calibration tokens; ValueError if the text is too short for what is asked, or of the wrong kind.

        `decoder_start` is the token that the decoder of an encoder-decoder begins with.
        """
        import torch

        if decoder_start is not None:
            raise ValueError(
                "this calibration gives plain text, and the model is an encoder-decoder, which needs a source and a "
                "target: pass calibration=pairs calibration.path=FILE.jsonl"
            )
        drawn = self.draw(tokenizer, seed, answer)
        if len(drawn.sequences) < self.num_sequences:
            raise ValueError(
                f"calibration.num_sequences={self.num_sequences} of {self.sequence_length} tokens: the text holds only "
                f"{len(drawn.sequences)}; lower calibration.num_sequences or calibration.sequence_length, or give more "
                "text"
            )
        tokens = torch.tensor(drawn.sequences, dtype=torch.int64)
        digest = sha256(tokens.numpy().tobytes()).hexdigest()
        batches_BT = list(torch.split(tokens, self.batch_size))
        return CalibrationTokens(batches_BT, digest, domains=drawn.domains, notes=drawn.notes)

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
