"""Text of the toy model's world."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

from stun_exp.calibration.protocol import Calibration


class ToyText(Calibration):
    """Text of the toy model's world, from a stream of documents that it was not trained on."""

    domain: Literal["all", "maths"]
    """Documents of every kind, in the shares of its training, or problems alone."""

    def sequences(self, tokenizer: Any, seed: int) -> Iterator[list[int]]:
        return islice(self.blocks(self._documents(tokenizer, seed), tokenizer), self.num_sequences)

    def openings(self, tokenizer: Any, seed: int, max_tokens: int, total_tokens: int) -> Iterator[list[int]]:
        return (ids[:max_tokens] for ids in self._documents(tokenizer, seed))

    def _documents(self, tokenizer: Any, seed: int) -> Iterator[list[int]]:
        from stun_exp.toy.text import calibration_documents

        return (tokenizer(text)["input_ids"] for text in calibration_documents(seed, self.domain))
