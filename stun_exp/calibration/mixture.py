"""Calibration text of several sources, each with its share."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from stun_exp.calibration.protocol import Answer, Calibration, Drawn

Weight = Annotated[float, Field(ge=0)]


class Mixture(Calibration):
    """Whole sequences of several sources, one after the other so that any beginning of them has about the same shares.

    `num_sequences`, `sequence_length` and `batch_size` are those of the mixture; what its sources say of these does not
    count.
    """

    sources: dict[str, Calibration]
    weights: dict[str, Weight]
    """Of each source its share of the sequences, over the sum of all; 0 leaves a source out."""

    @model_validator(mode="after")
    def _has_weights(self) -> "Mixture":
        for missing in sorted(self.sources.keys() - self.weights.keys()):
            raise ValueError(f"the source {missing} has no weight; pass +calibration.weights.{missing}=1")
        for unknown in sorted(self.weights.keys() - self.sources.keys()):
            raise ValueError(
                f"there is a weight for {unknown}, and no such source; pass ~calibration.weights.{unknown}"
            )
        if not any(self.weights.values()):
            raise ValueError("no source has a weight above 0; pass calibration.weights.NAME=1 for one at least")
        return self

    def parts(self) -> list[Calibration]:
        return [self, *(part for source in self._used().values() for part in source.parts())]

    def reads(self) -> list[Path]:
        return [file for source in self._used().values() for file in source.reads()]

    def asks_model(self) -> bool:
        return any(source.asks_model() for source in self._used().values())

    def draw(self, tokenizer: Any, seed: int, answer: Answer | None = None) -> Drawn:
        order = interleaved({name: self.weights[name] for name in self._used()}, self.num_sequences)
        for name in sorted(self._used().keys() - set(order)):
            raise ValueError(
                f"calibration.weights.{name}={self.weights[name]:g}: its share of calibration.num_sequences="
                f"{self.num_sequences} is less than one; raise one of them, or pass calibration.weights.{name}=0"
            )
        drawn = {name: self._of(name, order.count(name), tokenizer, seed, answer) for name in self._used()}
        left = {name: iter(one.sequences) for name, one in drawn.items()}
        notes = [f"calibration.sources.{name}: {note}" for name, one in drawn.items() for note in one.notes]
        return Drawn([next(left[name]) for name in order], order, notes)

    def _of(self, name: str, number: int, tokenizer: Any, seed: int, answer: Answer | None) -> Drawn:
        """So many sequences of one source; ValueError if it has not as many."""
        size = {"num_sequences": number, "sequence_length": self.sequence_length, "batch_size": self.batch_size}
        try:
            drawn = self.sources[name].model_copy(update=size).draw(tokenizer, seed, answer)
        except ValueError as error:
            raise ValueError(f"calibration.sources.{name}: {error}") from error
        if len(drawn.sequences) < number:
            raise ValueError(
                f"calibration.sources.{name}: {number} sequences of {self.sequence_length} tokens are its share, its "
                f"text holds only {len(drawn.sequences)}; lower calibration.weights.{name}, calibration.num_sequences "
                "or calibration.sequence_length, or give more text"
            )
        return drawn

    def _used(self) -> Mapping[str, Calibration]:
        return {name: source for name, source in self.sources.items() if self.weights[name] > 0}


def interleaved(weights: Mapping[str, float], number: int) -> list[str]:
    """`number` names; after each of them, every name has come as often as its weight says to within about one.

    The next is the one that is furthest behind, the first of several. Fractions: sums of floats would break ties.
    """
    exact = {name: Fraction(weight) for name, weight in weights.items()}
    total = sum(exact.values())
    came = dict.fromkeys(weights, 0)
    order = []
    for place in range(1, number + 1):
        name = max(exact, key=lambda one: exact[one] / total * place - came[one])
        came[name] += 1
        order.append(name)
    return order
