"""Calibration text to token batches: seeded, and hashed so that two runs can be told to have seen the same tokens.

Shapes: B sequences of a batch, T tokens.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from stun_exp.config.component import Component
from stun_exp.state.cache import Store
from stun_exp.utils.paths import expanded, is_file

if TYPE_CHECKING:
    from torch import Tensor


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

    def drawn(
        self,
        tokenizer: Any,
        seed: int,
        decoder_start: int | None,
        model: Mapping[str, str],
        store: Store,
        digest: Callable[[Path], str],
    ) -> CalibrationTokens:
        """The same as `tokens`, which another run may have drawn; `model` is the identity of the tokenizer's folder."""
        from stun_exp.state.code import made_by

        path = getattr(self, "path", None)
        key = {
            "calibration": f"{type(self).__qualname__} {self!r}",
            "text": None if path is None else digest(expanded(path)),
            "seed": seed,
            "decoder_start": decoder_start,
            "tokenizer": dict(model),
            **made_by(type(self).__module__),
        }
        found = store.find("tokens", key)
        if found is None:
            tokens = self.tokens(tokenizer, seed, decoder_start)
            store.add("tokens", key, vars(tokens))
            return tokens
        return CalibrationTokens(**found)

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

    domain: Literal["all", "maths"]
    """Documents of every kind, in the shares of its training, or problems alone."""

    def sequences(self, tokenizer: Any, seed: int) -> Iterator[list[int]]:
        from stun_exp.toy.text import calibration_documents

        documents = (tokenizer(text)["input_ids"] for text in calibration_documents(seed, self.domain))
        return islice(self._blocks(documents, tokenizer), self.num_sequences)


class LocalText(Calibration):
    """A file: .txt (one document), or .jsonl with `text` or with `input_ids` on each line."""

    path: str

    def sequences(self, tokenizer: Any, seed: int) -> Iterator[list[int]]:
        blocks = list(self._blocks(self._documents(tokenizer), tokenizer))
        # Blocks and not documents are drawn, so that the seed matters for one long document too.
        random.Random(seed).shuffle(blocks)
        return iter(blocks[: self.num_sequences])

    @field_validator("path")
    @classmethod
    def _is_text(cls, path: str) -> str:
        return text_file(path, ".txt", ".jsonl")

    def _documents(self, tokenizer: Any) -> list[list[int]]:
        file = expanded(self.path)
        if file.suffix == ".txt":
            documents = [tokenizer(text_of(file, self.path))["input_ids"]]
        else:
            documents = [self._row(row, where, tokenizer) for where, row in json_rows(file, self.path)]
        documents = [document for document in documents if document]
        if not documents:
            raise ValueError(f"calibration.path={self.path}: the file is empty; give text to calibrate on")
        return documents

    def _row(self, row: Mapping[str, Any], where: str, tokenizer: Any) -> list[int]:
        if isinstance(row.get("text"), str):
            ids: list[int] = tokenizer(checked_text(row["text"], where))["input_ids"]
            return ids
        if not isinstance(row.get("input_ids"), list):
            raise ValueError(f"{where}: needs a `text` or an `input_ids` field")
        return token_ids(row, "input_ids", where, tokenizer)


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


def text_file(path: str, *endings: str) -> str:
    """`path`, where a file of text is; ValueError if there is none, or if it ends otherwise."""
    file = expanded(path)
    if not is_file(file):
        raise ValueError("no such file")
    if file.suffix not in endings:
        raise ValueError(f"must end in {' or '.join(endings)}")
    return path


def text_of(file: Path, path: str) -> str:
    """The text in a file; ValueError that says where it is not UTF-8."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"calibration.path={path}: not UTF-8 (byte 0x{content[error.start]:02x} at {error.start}, in line {line}); "
            "save it as UTF-8"
        ) from error


def checked_text(text: str, where: str) -> str:
    """The same text; ValueError for half of a character, which JSON can hold and no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: not text (half of a character, at {error.start})") from error
    return text


def json_rows(file: Path, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The lines of a .jsonl file, each behind what an error calls it; one that is no object has no fields."""
    # Not splitlines: JSON may hold other line separators as they are, U+2028 for one.
    for number, line in enumerate(text_of(file, path).split("\n"), 1):
        where = f"calibration.path={path}, line {number}"
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error})") from error
        if line.strip():
            yield where, row if isinstance(row, dict) else {}


def token_ids(row: Mapping[str, Any], key: str, where: str, tokenizer: Any) -> list[int]:
    """The tokens in a field; ValueError if they are none of the tokenizer's."""
    if not all(type(i) is int and 0 <= i < len(tokenizer) for i in row[key]):  # true and false are integers too
        raise ValueError(f"{where}: `{key}` must be integers from 0 to {len(tokenizer) - 1}")
    return list(row[key])
