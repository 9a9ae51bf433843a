"""Prune language models, experts first, then weights; compare methods on one footing.

import stun_exp

report = stun_exp.prune("toy_moe", out="runs/first", sparsity=0.5, save=True)
model = stun_exp.load_pruned(report.checkpoint)
"""

from pathlib import Path
from typing import TYPE_CHECKING

from stun_exp.api import Report, inspect, prune, read_report

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedModel

__all__ = ["Report", "inspect", "load_pruned", "prune", "read_report", "read_reports"]


def load_pruned(path: str | Path, device: str = "cpu", nf4: bool = False) -> "PreTrainedModel":
    """The model in a written folder, ready to run.

    Layers may keep different numbers of experts. Code in the folder is never run.

    Args:
        path: A pruned checkpoint, such as `checkpoint/` in a run's folder.
        device: Where the model is to lie, in torch's words.
        nf4: Whether its layers are held in 4 bits, and not in their own dtype.

    Raises:
        OSError: The folder is not there, or a file of it.
        ValueError: A file of it cannot be read.
    """
    # Only here: whoever imports the package for something light should not wait for torch.
    import torch

    from stun_exp.checkpoint.load import load_pruned as load

    return load(Path(path), torch.device(device), nf4)


def read_reports(folder: str | Path) -> "DataFrame":
    """A row for each run that is found under a folder: settings, sparsity, metrics and costs."""
    from stun_exp.report.data.frame import read_reports as read

    return read(folder)
