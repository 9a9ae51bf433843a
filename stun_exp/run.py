"""One run, top to bottom: checkpoint -> experts -> weights -> written checkpoint -> benchmarks -> report."""

import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import yaml
from transformers import AutoTokenizer

from stun_exp.allocation_stage import layer_ratios
from stun_exp.beforehand import check_length, known_at_once, known_of
from stun_exp.budget import Budget, budget_of, expected_counts
from stun_exp.cache import Store
from stun_exp.calibration import decoder_start
from stun_exp.config import Point
from stun_exp.disk.checkpoint import Checkpoint
from stun_exp.disk.shards import Shard, write_file
from stun_exp.disk.writer import CheckpointWriter
from stun_exp.evaluation_stage import check_backend, evaluate
from stun_exp.export.protocol import Pruned as PrunedModel
from stun_exp.finished import fingerprint_of, is_finished, is_over
from stun_exp.gathering import settings_of
from stun_exp.journal import Allocated, FinishedLayer, Journal, Recovered, made_of
from stun_exp.known import DenseInputs, Known, calibrated_on
from stun_exp.lock import alone_in
from stun_exp.moe.plan import Plan, plan_json, retained_experts, router_digest
from stun_exp.nf4 import as_quantised
from stun_exp.progress import console
from stun_exp.recovery_stage import PrunedOnDisk, training_sequences
from stun_exp.report.card import command_of, model_card
from stun_exp.report.dry_run import print_budget
from stun_exp.report.ledger import Ledger, provenance, write_json, write_samples
from stun_exp.report.schema import SCHEMA
from stun_exp.report.seen import LayerDiagnostics
from stun_exp.report.tables import results_table
from stun_exp.stages import check_pattern, plan_experts
from stun_exp.stream import Held, Step, Walk, as_it_is
from stun_exp.thresholds import gate_statistics, layer_thresholds, skipping_json
from stun_exp.tracking import harmless
from stun_exp.unstructured_pruner.pattern import fixed_ratio
from stun_exp.verification import count_written, measured_sparsity, off_target, prove_it_runs
from stun_exp.weight_stage import Pruned, PrunedLayer, Pruning, WeightStage, prune_layers, warnings_of


def run(
    points: Sequence[Point], choices: Mapping[str, str | None] = MappingProxyType({}), sweep: str | None = None
) -> None:
    """Executes the pipeline at each point and leaves its artifacts there; ValueError or OSError for the user to mend.

    Several points, of different sparsities, go through the weights together: a layer is read once. `choices` are what
    was chosen for each group, for the report, and `sweep` the name of the one they are part of, for the tracker. What
    is finished in a point's folder is not done again.
    """
    with ExitStack() as locks:
        waiting = []
        for point in points:
            point.out.mkdir(exist_ok=True)
            locks.enter_context(alone_in(point.out))
            going = _run(point, choices)
            if (pruning := next(going, None)) is not None:
                waiting.append((going, pruning))
        for (going, _), pruned in zip(waiting, prune_layers([pruning for _, pruning in waiting]), strict=True):
            with suppress(StopIteration):
                going.send(pruned)
        for point in points:
            tracker: Any = point.settings.tracker
            if not point.settings.dry_run:  # one that was finished earlier may not have been tracked
                with harmless(point.out):
                    tracker.track(point.out, sweep)


def _run(point: Point, choices: Mapping[str, str | None]) -> Generator[Pruning, Pruned, None]:
    """One point's pipeline, but for the pruning of weights: that is asked of the caller."""
    settings: Any = point.settings
    config, out = point.config, point.out
    pruner, scope = settings.unstructured_pruner, settings.sparsity_scope
    device = settings.model.torch_device()
    in_nf4 = settings.model.load == "nf4"
    held: Held = as_quantised if in_nf4 else as_it_is
    keep = settings.save or settings.export.keeps_checkpoint
    ledger = Ledger(device)
    store = Store(settings.cache, ledger.warn)

    with ledger.stage("open"):
        checkpoint: Checkpoint = settings.model.open(settings.stream.scratch(out))
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=settings.model.trust_remote_code)
        start = decoder_start(checkpoint.config)
        tokens = settings.calibration.drawn(tokenizer, settings.seed, start, checkpoint.identity(), store)
        training_NT = training_sequences(
            settings.calibration, tokenizer, settings.seed, settings.recovery.num_sequences
        )
        ingredients = made_of(config, checkpoint, device, tokens.sha256, training_NT)
        fingerprint = fingerprint_of(ingredients, config)
        if settings.resume == "continue" and not settings.dry_run and is_finished(out, fingerprint, keep):
            console.print(f"{out}: finished earlier with these settings, nothing to do", soft_wrap=True)
            if not keep:  # it was stopped on its last step
                shutil.rmtree(out / "checkpoint", ignore_errors=True)
            return
        benchmarks = settings.eval.prepare()
        gates = gate_statistics(settings.skipping, checkpoint)
        check_backend(benchmarks, checkpoint, in_nf4, bool(gates))
        check_length(settings.calibration, checkpoint)
        for warning in known_at_once(checkpoint, benchmarks, bool(gates), in_nf4):
            ledger.warn(warning)
        stage = WeightStage(pruner, scope)
        check_pattern(checkpoint, stage)
        # The same totals whichever experts go, so what cannot be met is known before anything is run.
        counts = expected_counts(checkpoint, getattr(settings.expert_pruner, "ratio", 0.0))
        budget = budget_of(checkpoint, counts, settings.sparsity, scope, pruner.attention)
        ratio = _weights_ratio(budget, pruner)
        settings.export.check(checkpoint, getattr(settings.expert_pruner, "ratio", 0.0))
    if settings.dry_run:
        print_budget(checkpoint, budget, ratio, tokens.num_tokens)
        return

    anew = is_over(out) or settings.resume == "restart"
    journal = Journal(out, ingredients, anew)
    if anew:
        shutil.rmtree(out / "recovery", ignore_errors=True)
        (out / "report.json").unlink(missing_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    found = journal.found_in(out / "checkpoint", ledger.warn)
    writer = CheckpointWriter(checkpoint, out / "checkpoint", found.shards)

    spill = settings.stream.spill(out)

    def walk(what: str, plan: Plan | None = None, runs: bool = True, **more: Any) -> Walk:
        return Walk(checkpoint, tokens.batches_BT, device, what, plan, runs, tokens.targets_BT, held, spill, **more)

    known = Known(store, calibrated_on(checkpoint, tokens, in_nf4, device))

    with ledger.stage("experts") as cost:
        plan = journal.find("experts", Plan)
        if plan is None:
            seen, reference = walk("choosing experts"), walk("full model")
            plan = plan_experts(checkpoint, settings.expert_pruner, seen, reference, known)
            cost.forward_passes = seen.forward_passes + reference.forward_passes
            cost.charge(known.take_saved())
            journal.add("experts", plan, cost.forward_passes)
        for warning in known_of(plan, checkpoint):
            ledger.warn(warning)
        settings.export.check_plan(checkpoint, plan)
        routers = {i.layer: router_digest(checkpoint.read_router_rows(i.layer)) for i in plan.layers}
        write_json(out / "plan.json", plan_json(plan, routers))
        write_json(out / "retained_experts.json", retained_experts(plan, checkpoint.config.model_type))
        for name, content in plan.files.items():
            write_json(out / name, content)
        counts = {layer.layer: len(layer.groups) for layer in plan.layers}
        check_backend(benchmarks, checkpoint, in_nf4, bool(gates), counts.values())
        budget = budget_of(checkpoint, counts, settings.sparsity, scope, pruner.attention)
        ratio = _weights_ratio(budget, pruner)
    with ledger.stage("allocate") as cost:
        allocated = journal.find("allocate", Allocated)
        if allocated is None:
            dense, said = DenseInputs(known, plan, settings_of(pruner, scope, pruner.saliency_statistic)), list[str]()
            allocating = walk("allocating", plan, stage.needs_data and not dense.complete, dense=dense)
            ratios = layer_ratios(stage, settings.allocation, budget, ratio, allocating, said.append)
            allocated = Allocated(ratios, said)
            cost.forward_passes = allocating.forward_passes
            cost.charge(known.take_saved())
            journal.add("allocate", allocated, cost.forward_passes)
        for warning in allocated.warnings:
            ledger.warn(warning)
        if ratio == 0 and settings.allocation.measures:
            ledger.warn("the allocation has no effect: the weight stage has nothing to prune")
    with ledger.stage("prune") as cost:
        pruning = walk("pruning", plan, stage.needs_data and ratio > 0)
        one_batch = None
        if pruner.inputs == "dense":
            one_batch, pruning.dense = 1, DenseInputs(known, plan, settings_of(pruner, scope, pruner.statistic))
            if pruning.dense.complete:  # the first batch goes along, for the reconstruction error
                pruning.take_batches(one_batch)
        diagnostics = LayerDiagnostics(stage.prunable, found.seen, one_batch)
        pruning.edit = diagnostics.before(plan, checkpoint.read_layer)

        def record(step: Step, pruned: PrunedLayer, shard: Shard) -> None:
            index, passes = step.layer.index, step.passes / checkpoint.num_layers
            journal.add("prune", FinishedLayer(index, shard, pruned, diagnostics.of(index)), passes)

        asked = time.perf_counter()
        pruned, own_seconds = yield Pruning(
            stage, allocated.layers, pruning, writer, diagnostics.watch, found.pruned, record
        )
        cost.wall_seconds = own_seconds - (time.perf_counter() - asked)  # the rest was spent on other points
        cost.forward_passes = pruning.forward_passes
        cost.charge(known.take_saved())
        for warning in warnings_of(pruned, pruner):
            ledger.warn(warning)
    with ledger.stage("recover"):
        recovery = found.recovery.result if found.recovery else None
        if recovery is None:
            to_train = PrunedOnDisk(checkpoint, plan, out, device, training_NT, settings.seed, ledger.warn)
            recovery = settings.recovery.recover(to_train)
            if recovery is not None:
                journal.add("recover", Recovered(recovery, writer.rehash()))
    with ledger.stage("verify"):
        written = Checkpoint(out / "checkpoint", None, settings.stream.scratch(out))
        on_disk = count_written(written, scope)
        sparsity = measured_sparsity(budget, on_disk, pruned, settings)
        prove_it_runs(Walk(written, tokens.batches_BT[:1], device, "reloading", targets_BT=tokens.targets_BT[:1]))
        for warning in off_target(settings, sparsity["achieved"], sparsity["weights_ratio"]):
            ledger.warn(warning)
    with ledger.stage("export"):
        made = PrunedModel(
            source=checkpoint,
            plan=plan,
            folder=out / "checkpoint",
            profile=out / "retained_experts.json",
            weights_pruned=ratio > 0,
            recovered=recovery is not None,
            device=device,
        )
        exported = settings.export.export(made)
        for note in exported["notes"] if exported else ():
            ledger.warn(note)
    with ledger.stage("skip") as cost:
        gating = Walk(written, tokens.batches_BT, device, "measuring gates", targets_BT=tokens.targets_BT, held=held)
        thresholds = layer_thresholds(settings.skipping, gates, gating)
        if thresholds and keep:
            ledger.warn("the written checkpoint does not skip: the thresholds are in report.json alone")
        cost.forward_passes = gating.forward_passes
    with ledger.stage("evaluate") as cost:
        betas = {index: threshold.beta for index, threshold in thresholds.items()}
        weights = written.identity({shard.name: shard.sha256 for shard in writer.shards.values()})
        measured = evaluate(benchmarks, written, weights, tokenizer, device, in_nf4, betas, store)
        cost.cached_seconds = measured.cached_seconds
        for warning in measured.warnings:
            ledger.warn(warning)
        metrics_json = {key: asdict(metric) for key, metric in measured.metrics.items()}
        write_json(out / "metrics.json", metrics_json)
        write_samples(out / "samples.jsonl", measured.samples)
    with ledger.stage("baseline") as cost:
        unpruned = None
        if benchmarks.baseline:
            whole = checkpoint.identity()
            unpruned = evaluate(benchmarks, checkpoint, whole, tokenizer, device, in_nf4, {}, store)
            cost.cached_seconds = unpruned.cached_seconds
            write_samples(out / "baseline_samples.jsonl", unpruned.samples)

    journal.charge(ledger.costs)
    before = [layer.num_experts for layer in plan.layers]
    after = [len(layer.groups) for layer in plan.layers]
    report = {
        "schema": SCHEMA,
        "name": settings.name,
        "seed": settings.seed,
        "fingerprint": fingerprint,
        "choices": dict(choices),
        "settings": config,
        "model": {
            "source": settings.model.path,
            "model_type": checkpoint.config.model_type,
            "params_before": checkpoint.num_parameters,
            "params_after": written.num_parameters,
        },
        "experts": {"before": before, "after": after, "ratio": 1 - sum(after) / sum(before)},
        "sparsity": sparsity,
        "diagnostics": diagnostics.whole().json([layer.measured for layer in allocated.layers]),
        "recovery": recovery,
        "export": exported,
        "skipping": skipping_json(thresholds, measured.skips),
        "memory": [asdict(part) for part in measured.memory],
        "metrics": metrics_json,
        "baseline": unpruned and {"metrics": {key: asdict(metric) for key, metric in unpruned.metrics.items()}},
        "cost": ledger.cost(),
        "warnings": ledger.warnings,
        "provenance": provenance(device, tokens.sha256),
    }
    write_json(out / "sparsity.json", sparsity)
    if keep:
        write_file(out / "checkpoint" / "README.md", [model_card(report, command_of(out)).encode()])
    write_json(out / "report.json", report)
    if not keep:
        shutil.rmtree(out / "checkpoint")
    results_table([report]).show()


def _weights_ratio(budget: Budget, pruner: Any) -> float:
    """The second stage's ratio: what the budget leaves to it, what its pattern takes, or nothing."""
    return (fixed_ratio(pruner.pattern) or budget.weights_ratio()) if pruner.prunes else 0.0
