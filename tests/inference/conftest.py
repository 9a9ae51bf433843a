"""Small models side by side, on the CPU."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.inference.measure import MeasureInference
from stun_exp.inference.protocol import Compared


@pytest.fixture
def compared(tokens_BT: Tensor) -> Callable[[Mapping[str, Checkpoint]], Compared]:
    """(checkpoints) -> what is measured: 128 tokens of text."""
    return lambda checkpoints: Compared(checkpoints, [tokens_BT], torch.device("cpu"), False)


@pytest.fixture
def small() -> Callable[..., MeasureInference]:
    """The component for 2 sequences of 8 tokens, with settings changed."""

    def make(**changes: object) -> MeasureInference:
        values = {"batch_sizes": [1, 2], "prompt_tokens": 8, "new_tokens": 3, "repeats": 2, "vllm_python": None}
        return MeasureInference.model_validate(values | changes)

    return make
