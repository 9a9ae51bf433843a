"""The third stage, on disk: what a recovery trains, what it is taught by, and where the result goes."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.checkpoint.shards import Shard, digests_in, read_tensors, write_shard
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.moe.layers import MoELayer, layers_of
from stun_exp.moe.plan import Plan
from stun_exp.pipeline.context import RunContext, Stage
from stun_exp.pipeline.inputs import Inputs
from stun_exp.state.artifacts import CHECKPOINT


@dataclass(frozen=True)
class Recovered:
    """What a recovery reports, and all shards as it left them."""

    result: dict[str, Any]
    shards: dict[int, Shard]


RECOVER: Stage[dict[str, Any] | None] = Stage("recover")


def find_recovered(run: RunContext) -> Recovered | None:
    """What an earlier start has trained, if all of it lies in the folder just as it was recorded.

    If a shard is not, it is to be done again, on those of the weight stage.
    """
    found = run.journal.find(RECOVER.name, run.fingerprint(RECOVER.name), Recovered)
    if found is None:
        return None
    on_disk = digests_in(run.out / CHECKPOINT)
    if any(on_disk.get(shard.name) != shard.sha256 for shard in found.value.shards.values()):
        return None
    run.charge_earlier(RECOVER.name, found.cost)
    return found.value


def recover(
    run: RunContext, inputs: Inputs, plan: Plan, writer: CheckpointWriter, earlier: Recovered | None
) -> dict[str, Any] | None:
    """What the report says of the training that follows pruning; None without one."""
    if earlier is not None:
        return earlier.result
    to_train = PrunedOnDisk(
        inputs.checkpoint, plan, run.out, run.device, inputs.training_NT, run.settings.seed, run.warn
    )
    result = run.settings.recovery.recover(to_train)
    if result is not None:
        run.record(RECOVER.name, Recovered(result, writer.rehash()), 0.0)
    return result


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
        model = load_checkpoint(self.path, self.device).float().requires_grad_(True)
        return model, layers_of(model, self.source.family)

    def teacher(self, layer: int) -> nn.Module:
        whole, plan = self.source.read_layer(layer), self.plan.of(layer)
        if plan is None:
            dense: nn.Module = whole.module.to(self.device)
            return dense
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
