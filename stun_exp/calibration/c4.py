"""C4, the text that most pruning papers calibrate on."""

import random
from collections.abc import Iterator
from typing import Any

from stun_exp.calibration.protocol import Calibration


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
