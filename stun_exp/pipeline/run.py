"""One run, top to bottom: checkpoint -> parts -> experts -> weights -> written checkpoint -> benchmarks -> report."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any

import yaml

from stun_exp.config.settings import RunSpec
from stun_exp.pipeline.allocate import ALLOCATE, allocate, check_allocation
from stun_exp.pipeline.budget import budget_of, weights_ratio
from stun_exp.pipeline.context import RunContext
from stun_exp.pipeline.damage import DAMAGE, measure_damage
from stun_exp.pipeline.evaluate import BASELINE, EVALUATE, evaluate_pruned, evaluate_unpruned
from stun_exp.pipeline.experts import EXPERTS, decide_experts
from stun_exp.pipeline.export import EXPORT, export
from stun_exp.pipeline.inference import INFERENCE, measure_inference
from stun_exp.pipeline.open import OPEN, open_inputs
from stun_exp.pipeline.plan_files import write_plan
from stun_exp.pipeline.preflight import files_of
from stun_exp.pipeline.prune import PreparedRun, Written, clear_folder, find_layers, prune_together
from stun_exp.pipeline.recover import RECOVER, find_recovered, recover
from stun_exp.pipeline.report import leave_report, report_of
from stun_exp.pipeline.skip import SKIP, skip
from stun_exp.pipeline.structure import restructure, weights_taken
from stun_exp.pipeline.verify import VERIFY, verify
from stun_exp.state.artifacts import CHECKPOINT, REPORT, SHOTS, STRUCTURED
from stun_exp.state.finished import is_over
from stun_exp.state.ownership import is_there, remove
from stun_exp.tracker.protocol import harmless
from stun_exp.utils.files import write_file


def run(
    specs: Sequence[RunSpec], choices: Mapping[str, str | None] = MappingProxyType({}), sweep: str | None = None
) -> list[dict[str, Any]]:
    """The reports of the runs that were not complete, in whose folders all that they found is left.

    Runs of one model at several sparsities have their weights pruned in one walk: a layer is read once.

    Args:
        specs: The runs.
        choices: What was chosen for each group of settings, for the report.
        sweep: The name of the sweep that they are part of, for the tracker.

    Raises:
        ValueError: A setting, or what it names, is the user's to mend.
        OSError: A file could not be read or written; its name is in the message.
    """
    with ExitStack() as stack:
        runs = [stack.enter_context(RunContext.open(spec, choices)) for spec in specs]
        ready = [prepared for one in runs if (prepared := prepare(one)) is not None]
        reports = [finish(*pruned) for pruned in zip(ready, prune_together(ready), strict=True)]
        for one in runs:
            log_to_tracker(one, sweep)
    return reports


def prepare(run: RunContext) -> PreparedRun | None:
    """All that is decided before a weight is pruned; None if the run is complete, or a dry run."""
    inputs = run.stage(OPEN, open_inputs)
    if inputs is None:
        return None
    begin(run, files_of(inputs.checkpoint))
    inputs = restructure(run, inputs)
    recovered = find_recovered(run)
    found = find_layers(run, recovered.shards if recovered else None)
    clear_folder(run, inputs, found)
    plan = run.stage(EXPERTS, decide_experts, inputs)
    write_plan(run, inputs, plan)
    damage = run.stage(DAMAGE, measure_damage, inputs, plan)
    settings, pruner = run.settings, run.settings.unstructured_pruner
    budget = budget_of(
        inputs.checkpoint,
        plan.num_kept,
        run.sparsity,
        settings.sparsity_scope,
        pruner.attention,
        weights_taken(run, inputs),
    )
    ratio = weights_ratio(budget, pruner)
    allocated = run.stage(ALLOCATE, allocate, inputs, plan, budget, ratio)
    check_allocation(run, inputs, plan, budget, allocated)
    return PreparedRun(run, inputs, plan, damage, budget, ratio, allocated, found, recovered)


def finish(prepared: PreparedRun, written: Written) -> dict[str, Any]:
    """What follows the pruning of weights, up to the report."""
    run, inputs, plan = prepared.run, prepared.inputs, prepared.plan
    recovery = run.stage(RECOVER, recover, inputs, plan, written.writer, prepared.recovered)
    on_disk = run.stage(VERIFY, verify, inputs, prepared.budget, written)
    exported = run.stage(EXPORT, export, inputs, plan, on_disk, prepared.ratio > 0, recovery is not None)
    on_disk = exported.on_disk
    thresholds = run.stage(SKIP, skip, inputs, on_disk.checkpoint)
    betas = {index: threshold.beta for index, threshold in thresholds.items()}
    measured = run.stage(EVALUATE, evaluate_pruned, inputs, on_disk, betas)
    unpruned = run.stage(BASELINE, evaluate_unpruned, inputs)
    in_use = run.stage(INFERENCE, measure_inference, inputs, on_disk)
    report = report_of(prepared, written, on_disk, recovery, exported.result, thresholds, measured, unpruned, in_use)
    leave_report(run, report, on_disk)
    return report


def begin(run: RunContext, names: Sequence[str]) -> None:
    """Goes on with the run in the folder, or begins it anew in the place of one that is over."""
    anew = is_over(run.out) or run.settings.resume == "restart"
    run.begin(run.made_of(), anew, names)
    if anew:
        folders = (CHECKPOINT, STRUCTURED, SHOTS, "recovery")
        own = [name for folder in folders for name in run.own_in(folder)]
        # An empty folder whose files were never written may be somebody's.
        remove(run.out, [REPORT, *(name for name in own if is_there(run.out, name))])
    write_file(run.out / "config.yaml", [yaml.safe_dump(run.spec.config, sort_keys=False).encode()])


def log_to_tracker(run: RunContext, sweep: str | None) -> None:
    """Logs the finished run, which may have been finished earlier and not logged, to the run's tracker."""
    if not run.settings.dry_run:
        with harmless(run.out):
            run.settings.tracker.track(run.out, sweep)
