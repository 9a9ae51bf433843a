"""The stage that proves where the pruned model can be used."""

from typing import Any

from stun_exp.export.protocol import Pruned
from stun_exp.moe.plan import Plan
from stun_exp.pipeline.context import RunContext, Stage
from stun_exp.pipeline.inputs import Inputs
from stun_exp.pipeline.plan_files import PROFILE
from stun_exp.state.artifacts import CHECKPOINT

Result = dict[str, Any] | None
EXPORT: Stage[Result] = Stage("export", warnings=lambda result: result["notes"] if result else ())


def export(run: RunContext, inputs: Inputs, plan: Plan, weights_pruned: bool, recovered: bool) -> Result:
    """What the report says of the export; None without one. ValueError if its proof fails."""
    made = Pruned(
        source=inputs.checkpoint,
        plan=plan,
        folder=run.out / CHECKPOINT,
        profile=run.out / PROFILE,
        weights_pruned=weights_pruned,
        recovered=recovered,
        device=run.device,
        tokens=inputs.tokens,
    )
    return run.settings.export.export(made)
