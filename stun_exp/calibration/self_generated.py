"""Calibration on what the unpruned model says itself."""

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from stun_exp.calibration.protocol import Answer, Calibration, Drawn, Sampling


class SelfGenerated(Calibration):
    """Prompts, each with the unpruned model's answer: such documents are joined and cut into sequences.

    What the source of the prompts says of `num_sequences`, `sequence_length` and `batch_size` does not count.
    """

    prompts: Calibration
    prompt_tokens: int = Field(ge=1)
    """At most; of a document its opening. A chat's prompt that is longer is left out."""
    answer_tokens: int = Field(ge=1)
    """At most; the model may end earlier."""
    temperature: float = Field(ge=0)
    """0 takes the likeliest token each time."""
    top_p: float = Field(gt=0, le=1)
    """Share of the probability that tokens are sampled from, the likeliest ones; without effect at temperature 0."""

    @field_validator("prompts")
    @classmethod
    def _is_text(cls, prompts: Calibration) -> Calibration:
        if prompts.asks_model():
            raise ValueError("a model's answers are no prompts; choose a source of text")
        return prompts

    def parts(self) -> list[Calibration]:
        return [self, *self.prompts.parts()]

    def reads(self) -> list[Path]:
        return self.prompts.reads()

    def asks_model(self) -> bool:
        return True

    def draw(self, tokenizer: Any, seed: int, answer: Answer | None = None) -> Drawn:
        assert answer is not None, "whoever draws has looked at asks_model"
        prompts = self.prompts.openings(tokenizer, seed, self.prompt_tokens, self.most_tokens)
        too_long = list[int]()
        documents = self._documents(_short(prompts, self.prompt_tokens, too_long), tokenizer, seed, answer)
        sequences = list(islice(self.blocks(documents, tokenizer), self.num_sequences))
        return Drawn(sequences, notes=self._left_out(too_long))

    def _documents(
        self, prompts: Iterator[list[int]], tokenizer: Any, seed: int, answer: Answer
    ) -> Iterator[list[int]]:
        """Prompt and answer, without an end of text, which joining puts there."""
        place = 0
        while batch := list(islice(prompts, self.batch_size)):
            own_seed = random.Random(f"{seed} {place}").getrandbits(32)
            sampling = Sampling(self.answer_tokens, self.temperature, self.top_p, own_seed)
            for prompt, answered in zip(batch, answer(batch, sampling), strict=True):
                ends = answered[-1:] == [tokenizer.eos_token_id]
                yield [*prompt, *(answered[:-1] if ends else answered)]
            place += 1

    def _left_out(self, too_long: list[int]) -> list[str]:
        if not too_long:
            return []
        return [
            f"calibration.prompt_tokens={self.prompt_tokens}: {len(too_long)} prompts are longer, up to "
            f"{max(too_long)} tokens, and were left out"
        ]


def _short(prompts: Iterator[list[int]], max_tokens: int, too_long: list[int]) -> Iterator[list[int]]:
    """The prompts of at most so many tokens; the lengths of others go to `too_long`."""
    for prompt in prompts:
        if len(prompt) <= max_tokens:
            yield prompt
        else:
            too_long.append(len(prompt))
