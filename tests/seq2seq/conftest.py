"""Tiny encoder-decoders with other settings, and what they read.

Shapes: B sequences of a batch, T tokens.
"""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stun_exp.checkpoint.checkpoint import Checkpoint


@pytest.fixture(params=["switch_transformers", "nllb-moe"])
def family(request: pytest.FixtureRequest) -> str:
    """Either has four layers, numbered through; of those 1 (the encoder's) and 3 (the decoder's) have experts."""
    return str(request.param)


@pytest.fixture
def with_settings(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., Checkpoint]:
    """(family, settings) -> the tiny model with those settings in its config.json."""

    def make(family: str, **settings: Any) -> Checkpoint:
        folder = Path(copytree(tiny_model(family), tmp_path / "model"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))
        return Checkpoint(folder, None)

    return make


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """(seed, shape) -> tokens."""
    return lambda seed, *shape: torch.randint(1, 64, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def sources_BT(draw: Callable[..., Tensor]) -> list[Tensor]:
    """Batches of different size and length."""
    return [draw(0, 3, 20), draw(1, 1, 20), draw(2, 2, 7)]


@pytest.fixture
def targets_BT(draw: Callable[..., Tensor]) -> list[Tensor]:
    return [draw(3, 3, 11), draw(4, 1, 9), draw(5, 2, 7)]


@pytest.fixture
def logits() -> Callable[[PreTrainedModel, Tensor, Tensor], Tensor]:
    """(model, source, target) -> what the model makes of them."""

    def run(model: PreTrainedModel, source_BT: Tensor, target_BT: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = model(input_ids=source_BT, decoder_input_ids=target_BT).logits
        return found

    return run
