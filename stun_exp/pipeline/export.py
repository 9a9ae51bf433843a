"""The stage that proves where the pruned model can be used."""

from dataclasses import dataclass, replace
from typing import Any

from stun_exp.export.protocol import Pruned
from stun_exp.moe.plan import Plan
from stun_exp.pipeline.context import RunContext, Stage
from stun_exp.pipeline.inputs import Inputs
from stun_exp.pipeline.plan_files import PROFILE
from stun_exp.pipeline.verify import WrittenCheckpoint
from stun_exp.state.artifacts import CHECKPOINT


@dataclass(frozen=True)
class Exported:
    """What an export has made."""

    result: dict[str, Any] | None
    """What the report says of it; None without one."""
    on_disk: WrittenCheckpoint
    """The checkpoint as it is now."""


EXPORT: Stage[Exported] = Stage("export", warnings=lambda done: done.result["notes"] if done.result else ())


def export(
    run: RunContext, inputs: Inputs, plan: Plan, on_disk: WrittenCheckpoint, weights_pruned: bool, recovered: bool
) -> Exported:
    """Does what is set, and proves it; ValueError if the proof fails."""
    made = Pruned(
        source=inputs.checkpoint,
        plan=plan,
        folder=run.out / CHECKPOINT,
        writer=on_disk.writer,
        profile=run.out / PROFILE,
        weights_pruned=weights_pruned,
        recovered=recovered,
        device=run.device,
        tokens=inputs.tokens,
    )
    result = run.settings.export.export(made)
    if on_disk.writer.replaced:  # what follows is to read the files that there are now
        scratch = run.settings.stream.scratch(run.out)
        on_disk = replace(on_disk, checkpoint=run.settings.model.written(made.folder, scratch))
    return Exported(result, on_disk)
