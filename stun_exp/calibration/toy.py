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
        from stun_exp.toy.text import calibration_documents

        documents = (tokenizer(text)["input_ids"] for text in calibration_documents(seed, self.domain))
        return islice(self.blocks(documents, tokenizer), self.num_sequences)
