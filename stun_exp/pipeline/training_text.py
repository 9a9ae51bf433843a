"""The text that a recovery trains on."""

from typing import Any

import torch
from torch import Tensor

from stun_exp.calibration.protocol import Answer, Calibration


def training_sequences(
    calibration: Calibration, tokenizer: Any, seed: int, num_sequences: int, answer: Answer | None = None
) -> Tensor:
    """(N, T) sequences from the calibration's source that are not the calibration's own: those that follow them.

    With another seed a source of finite length would give some of the same again. `answer` asks the unpruned model, for
    a calibration that does. ValueError if the text is too short.
    """
    if num_sequences == 0:
        return torch.empty(0, calibration.sequence_length, dtype=torch.int64)
    before = calibration.num_sequences
    longer = calibration.model_copy(update={"num_sequences": before + num_sequences})
    rows = longer.draw(tokenizer, seed, answer).sequences[before:]
    if len(rows) < num_sequences:
        raise ValueError(
            f"recovery.num_sequences={num_sequences} of {calibration.sequence_length} tokens: after the "
            f"{before} of the calibration the text holds only {len(rows)}; lower recovery.num_sequences, "
            "calibration.num_sequences or calibration.sequence_length, or give more text"
        )
    return torch.tensor(rows, dtype=torch.int64)
