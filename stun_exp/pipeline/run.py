"""One run, top to bottom: checkpoint -> experts -> weights -> written checkpoint -> benchmarks -> report."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import yaml

from stun_exp.checkpoint.nf4 import as_quantised
from stun_exp.checkpoint.shards import Shard
from stun_exp.checkpoint.writer import CARD, CheckpointWriter, check_space
from stun_exp.config.settings import Point
from stun_exp.export.protocol import Pruned as PrunedModel
from stun_exp.moe.plan import Plan, plan_json, retained_experts, router_digest
from stun_exp.pipeline.allocate import layer_ratios
from stun_exp.pipeline.budget import budget_of, weights_ratio
from stun_exp.pipeline.evaluate import check_backend, evaluate
from stun_exp.pipeline.experts import plan_experts
from stun_exp.pipeline.input_statistics import settings_of
from stun_exp.pipeline.layer_diagnostics import LayerDiagnostics
from stun_exp.pipeline.model_card import command_of, model_card
from stun_exp.pipeline.opening import names_of, open_inputs
from stun_exp.pipeline.preflight import known_of
from stun_exp.pipeline.prune import Pruned, PrunedLayer, Pruning, prune_layers, warnings_of
from stun_exp.pipeline.recover import PrunedOnDisk
from stun_exp.pipeline.skip import layer_thresholds, skipping_json
from stun_exp.pipeline.source_zeros import check_allocated
from stun_exp.pipeline.verify import count_written, measured_sparsity, off_target, prove_it_runs
from stun_exp.report.tables.results import results_table
from stun_exp.state.artifacts import SCHEMA
from stun_exp.state.cache import Store
from stun_exp.state.finished import is_over, kept_files, run_code
from stun_exp.state.journal import Allocated, FinishedLayer, Journal, Recovered
from stun_exp.state.ledger import Ledger, provenance, write_json, write_samples
from stun_exp.state.lock import alone_in
from stun_exp.state.ownership import remove
from stun_exp.state.statistics_cache import DenseInputs, Known, calibrated_on
from stun_exp.streaming.walk import Held, Step, Walk, as_it_is
from stun_exp.tracker.wandb import harmless
from stun_exp.unstructured_pruner.pattern import fixed_ratio
from stun_exp.utils.files import digest_of, write_file
from stun_exp.utils.progress import console


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
        opened = open_inputs(point, device, store, ledger.warn)
    if opened is None:
        return
    if opened.finished:
        console.print(f"{out}: finished earlier with these settings, nothing to do", soft_wrap=True)
        if not keep:  # it was stopped on its last step
            remove(out, opened.own_in("checkpoint"))
        return
    checkpoint, tokenizer, tokens, benchmarks = opened.checkpoint, opened.tokenizer, opened.tokens, opened.benchmarks
    stage, gates = opened.stage, opened.gates

    anew = is_over(out) or settings.resume == "restart"
    journal = Journal(out, opened.ingredients, anew, names_of(checkpoint))
    if anew:
        remove(out, ["report.json", *opened.own_in("checkpoint"), *opened.own_in("recovery")])
    write_file(out / "config.yaml", [yaml.safe_dump(config, sort_keys=False).encode()])
    found = journal.found_in(out / "checkpoint", ledger.warn)
    remove(out, opened.own_in("checkpoint"), keep={f"checkpoint/{shard.name}" for shard in found.shards.values()})
    check_space(checkpoint, out, found.shards)

    spill = settings.stream.spill(out)

    def walk(what: str, plan: Plan | None = None, runs: bool = True, **more: Any) -> Walk:
        return Walk(checkpoint, tokens.batches_BT, device, what, plan, runs, tokens.targets_BT, held, spill, **more)

    known = Known(store, calibrated_on(checkpoint, opened.identity, tokens, in_nf4, device))

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
        journal.claim(plan.files)
        routers = {i.layer: router_digest(checkpoint.read_router_rows(i.layer)) for i in plan.layers}
        write_json(out / "plan.json", plan_json(plan, routers))
        write_json(out / "retained_experts.json", retained_experts(plan, checkpoint.config.model_type))
        for name, content in plan.files.items():
            write_json(out / name, content)
        counts = {layer.layer: len(layer.groups) for layer in plan.layers}
        check_backend(benchmarks, checkpoint, in_nf4, bool(gates), counts.values())
        budget = budget_of(checkpoint, counts, settings.sparsity, scope, pruner.attention)
        ratio = weights_ratio(budget, pruner)
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
        if settings.allocation.exact and not fixed_ratio(pruner.pattern) and pruner.prunes:
            check_allocated(opened.zeros, budget, plan, allocated.layers, opened.source_zeros)
    writer = CheckpointWriter(checkpoint, out / "checkpoint", found.shards)
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
            to_train = PrunedOnDisk(checkpoint, plan, out, device, opened.training_NT, settings.seed, ledger.warn)
            recovery = settings.recovery.recover(to_train)
            if recovery is not None:
                journal.add("recover", Recovered(recovery, writer.rehash()))
    with ledger.stage("verify"):
        written = settings.model.written(out / "checkpoint", settings.stream.scratch(out))
        on_disk = count_written(written, stage, {index for index, layer in enumerate(pruned) if layer.ratio})
        sparsity = measured_sparsity(budget, on_disk, pruned, settings, opened.zeros, opened.source_zeros)
        prove_it_runs(Walk(written, tokens.batches_BT[:1], device, "reloading", targets_BT=tokens.targets_BT[:1]))
        for warning in off_target(settings, sparsity["achieved"], sparsity["weights_ratio"], opened.source_zeros):
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
        digests = {out / "checkpoint" / shard.name: shard.sha256 for shard in writer.shards.values()}
        weights = written.identity(lambda file: digests.get(file) or str(digest_of(file)))
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
            unpruned = evaluate(benchmarks, checkpoint, opened.identity, tokenizer, device, in_nf4, {}, store)
            cost.cached_seconds = unpruned.cached_seconds
            write_samples(out / "baseline_samples.jsonl", unpruned.samples)

    journal.charge(ledger.costs)
    before = [layer.num_experts for layer in plan.layers]
    after = [len(layer.groups) for layer in plan.layers]
    report = {
        "schema": SCHEMA,
        "name": settings.name,
        "seed": settings.seed,
        "fingerprint": opened.fingerprint,
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
        "provenance": provenance(device, tokens.sha256) | {"code": run_code(config)},
    }
    write_json(out / "sparsity.json", sparsity)
    if keep:
        write_file(out / "checkpoint" / CARD, [model_card(report, command_of(out)).encode()])
        journal.add("kept", kept_files(out, lambda file: digests.get(file) or str(digest_of(file))))
    write_json(out / "report.json", report)
    if not keep:
        remove(out, [name for name in journal.own if name.startswith("checkpoint/")])
    results_table([report]).show()
