"""What a run leaves of its expert plan, and what the plan rules out."""

import logging
from base64 import b64decode

from stun_exp.moe.plan import Plan, plan_id, plan_json, retained_experts, router_digest
from stun_exp.pipeline.backend import check_backend
from stun_exp.pipeline.context import RunContext
from stun_exp.pipeline.inputs import Inputs
from stun_exp.utils.files import write_file
from stun_exp.utils.json_files import write_json

PROFILE = "retained_experts.json"
log = logging.getLogger(__name__)


def write_plan(run: RunContext, inputs: Inputs, plan: Plan) -> None:
    """Writes the plan and the files that explain it.

    Raises:
        ValueError: It rules out what is to be done with the model, or a file of somebody's is in the way.
    """
    checkpoint = inputs.checkpoint
    run.settings.export.check_plan(checkpoint, plan)
    counts = () if run.settings.export.equal_layers else plan.num_kept.values()
    check_backend(inputs.benchmarks, checkpoint, run.in_nf4, bool(inputs.gates), counts)
    run.journal.claim([*plan.files, *plan.archives])
    routers = {layer.layer: router_digest(checkpoint.read_router_rows(layer.layer)) for layer in plan.layers}
    profile = retained_experts(plan, checkpoint.config.model_type)
    for name, content in {"plan.json": plan_json(plan, routers), PROFILE: profile, **plan.files}.items():
        write_json(run.out / name, content)
    for name, archive in plan.archives.items():
        write_file(run.out / name, [b64decode(archive)])
    kept, experts = sum(plan.num_kept.values()), sum(layer.num_experts for layer in plan.layers)
    log.info("plan %s: %d of %d experts stay", plan_id(plan), kept, experts)
    merged = [layer.layer for layer in plan.layers if any(len(group) > 1 for group in layer.groups)]
    if merged and checkpoint.scratch is not None:
        where = ", ".join(map(str, merged))
        run.warn(f"layer {where}: merged experts are put together in memory, whatever stream.experts says")
