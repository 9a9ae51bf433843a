"""Prune mixture-of-experts language models; `load_pruned` loads what was written."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_pruned(path: str | Path, device: str = "cpu", nf4: bool = False) -> "PreTrainedModel":
    """The model in a written folder, ready to run, in its own dtype or with its layers in 4 bits.

    Layers may keep different numbers of experts. Code in the folder is never run. FileNotFoundError or ValueError for
    a folder that cannot be read.
    """
    # Only here: whoever imports the package for something light should not wait for torch.
    import torch

    from stun_exp.checkpoint.load import load_pruned as load

    return load(Path(path), torch.device(device), nf4)
