"""report.json: all that a run found, in one file that is written last."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stun_exp.checkpoint.writer import CARD
from stun_exp.inference.records import Comparison
from stun_exp.moe.plan import Plan
from stun_exp.pipeline.context import RunContext
from stun_exp.pipeline.damage import damage_json, redundancy_json
from stun_exp.pipeline.domains import domains_json
from stun_exp.pipeline.evaluate import EvaluatedCheckpoint
from stun_exp.pipeline.expert_stage import expert_stage_json
from stun_exp.pipeline.inference import inference_json
from stun_exp.pipeline.inputs import Inputs
from stun_exp.pipeline.model_card import command_of, model_card
from stun_exp.pipeline.provenance import provenance
from stun_exp.pipeline.prune import PreparedRun, Written
from stun_exp.pipeline.skip import Threshold, skipping_json
from stun_exp.pipeline.structure_report import structure_json
from stun_exp.pipeline.verify import WrittenCheckpoint
from stun_exp.state.artifacts import CHECKPOINT, REPORT, SCHEMA, STRUCTURED
from stun_exp.state.finished import kept_files
from stun_exp.state.ownership import remove
from stun_exp.utils.files import write_file
from stun_exp.utils.json_files import write_json


def report_of(
    prepared: PreparedRun,
    written: Written,
    on_disk: WrittenCheckpoint,
    recovery: dict[str, Any] | None,
    exported: dict[str, Any] | None,
    thresholds: Mapping[int, Threshold],
    measured: EvaluatedCheckpoint,
    unpruned: EvaluatedCheckpoint | None,
    in_use: Comparison | None,
) -> dict[str, Any]:
    """The report of a run that has gone through all its stages."""
    run, inputs = prepared.run, prepared.inputs
    per_layer = [layer.measured for layer in prepared.allocated.layers]
    return {
        "schema": SCHEMA,
        "name": run.settings.name,
        "seed": run.settings.seed,
        "fingerprint": run.fingerprint("report"),
        "choices": dict(run.choices),
        "settings": run.spec.config,
        "model": _model(run, inputs, on_disk),
        "structure": structure_json(inputs),
        "experts": _experts(prepared.plan),
        "expert_stage": expert_stage_json(prepared.plan, damage_json(prepared.damage)),
        "redundancy": redundancy_json(prepared.damage),
        "domains": domains_json(inputs.tokens.domains, prepared.damage.domains if prepared.damage else None),
        "sparsity": on_disk.sparsity,
        "diagnostics": written.diagnostics.whole().json(per_layer),
        "recovery": recovery,
        "export": exported,
        "skipping": skipping_json(thresholds, measured.skips),
        "memory": [asdict(part) for part in measured.memory],
        "metrics": measured.json(),
        "baseline": unpruned and {"metrics": unpruned.json()},
        "inference": inference_json(in_use),
        "cost": run.costs.json(),
        "warnings": run.warnings,
        "provenance": provenance(run.device, inputs.tokens.sha256) | {"code": run.code()},
    }


def leave_report(run: RunContext, report: dict[str, Any], on_disk: WrittenCheckpoint) -> None:
    """Writes the report, with which the run is over; keeps the checkpoint with its card, or removes it."""
    remove(run.out, [f"{CHECKPOINT}/{name}" for name in on_disk.writer.replaced])
    if run.keeps_checkpoint:
        write_file(run.out / CHECKPOINT / CARD, [model_card(report, command_of(run.out)).encode()])
        run.note_kept(kept_files(run.out, on_disk.digest))
    write_json(run.out / REPORT, report)
    gone = [STRUCTURED] if run.keeps_checkpoint else [CHECKPOINT, STRUCTURED]
    names = [name for name in run.journal.own if name.startswith(tuple(f"{folder}/" for folder in gone))]
    if names:
        remove(run.out, names)


def _model(run: RunContext, inputs: Inputs, on_disk: WrittenCheckpoint) -> dict[str, Any]:
    return {
        "source": run.settings.model.path,
        "model_type": inputs.checkpoint.config.model_type,
        "params_before": inputs.unpruned.num_parameters,
        "params_after": on_disk.checkpoint.num_parameters,
    }


def _experts(plan: Plan) -> dict[str, Any]:
    before = [layer.num_experts for layer in plan.layers]
    after = list(plan.num_kept.values())
    return {"before": before, "after": after, "ratio": 1 - sum(after) / sum(before) if before else 0.0}
