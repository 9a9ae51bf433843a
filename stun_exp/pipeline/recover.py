"""The third stage, on disk: what a recovery trains, what it is taught by, and where the result goes."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stun_exp.calibration.protocol import Calibration
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_pruned
from stun_exp.checkpoint.shards import read_tensors, write_shard
from stun_exp.moe.layers import MoELayer, layers_of
from stun_exp.moe.plan import Plan


def training_sequences(calibration: Calibration, tokenizer: Any, seed: int, num_sequences: int) -> Tensor:
    """(N, T) sequences from the calibration's source that are not the calibration's own: those that follow them.

    With another seed a source of finite length would give some of the same again. ValueError if it is too short.
    """
    if num_sequences == 0:
        return torch.empty(0, calibration.sequence_length, dtype=torch.int64)
    before = calibration.num_sequences
    longer = calibration.model_copy(update={"num_sequences": before + num_sequences})
    rows = list(longer.sequences(tokenizer, seed))[before:]
    if len(rows) < num_sequences:
        raise ValueError(
            f"recovery.num_sequences={num_sequences} of {calibration.sequence_length} tokens: after the "
            f"{before} of the calibration the text holds only {len(rows)}; lower recovery.num_sequences, "
            "calibration.num_sequences or calibration.sequence_length, or give more text"
        )
    return torch.tensor(rows, dtype=torch.int64)


class PrunedOnDisk:
    """A pruned checkpoint in a run's folder, and the model it was made of (a `PrunedModel`)."""

    def __init__(
        self,
        source: Checkpoint,
        plan: Plan,
        out: Path,
        device: torch.device,
        sequences_NT: Tensor,
        seed: int,
        warn: Callable[[str], None],
    ):
        self.source = source
        self.plan = plan
        self.path = out / "checkpoint"
        self.state = out / "recovery" / "state.pt"
        self.device = device
        self.sequences_NT = sequences_NT
        self.seed = seed
        self.warn = warn

    def digest(self) -> str:
        whole = sha256(self.sequences_NT.numpy().tobytes())
        for file in sorted(self.path.iterdir()):
            with file.open("rb") as handle:
                while block := handle.read(2**24):
                    whole.update(block)
        return whole.hexdigest()

    def load(self) -> tuple[PreTrainedModel, list[MoELayer]]:
        model = load_pruned(self.path, self.device).float().requires_grad_(True)
        return model, layers_of(model, self.source.family)

    def teacher(self, layer: int) -> nn.Module:
        whole, plan = self.source.read_layer(layer), self.plan.of(layer)
        assert plan is not None
        whole.regroup([[expert] for expert in plan.kept])
        experts: nn.Module = whole.experts.to(self.device)
        return experts

    def save(self, model: PreTrainedModel) -> None:
        """Puts the trained weights in the place of those on disk: the same files and keys, other numbers."""
        written = Checkpoint(self.path, None)
        state = {
            name: tensor.detach().to("cpu", written.dtype) if tensor.is_floating_point() else tensor.cpu()
            for name, tensor in model.state_dict().items()
        }
        trained = state | written.keys.revert(state)
        unused = {key for part in written.keys.unused.values() for key in part}
        for file in sorted(set(written.files.values())):
            keys = [key for key, home in written.files.items() if home == file]
            tensors = read_tensors(written.files, unused & set(keys))
            tensors |= {key: trained[key] for key in keys if key not in tensors}
            write_shard(file, tensors)
