"""One run, top to bottom: checkpoint -> experts -> weights -> written checkpoint -> benchmarks -> report."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from transformers import AutoTokenizer

from stun_exp.budget import Budget, budget_of, expected_counts
from stun_exp.calibration import decoder_start
from stun_exp.disk.checkpoint import Checkpoint
from stun_exp.disk.load import load_pruned
from stun_exp.disk.writer import CheckpointWriter
from stun_exp.moe.layers import MoELayer, layers_of
from stun_exp.moe.plan import Plan, plan_json, retained_experts, router_digest
from stun_exp.moe.skip import skip_experts
from stun_exp.nf4 import as_quantised, check_memory, memory
from stun_exp.recovery_stage import PrunedOnDisk, training_sequences
from stun_exp.report.diagnostics import Diagnostics
from stun_exp.report.ledger import Ledger, provenance, write_json
from stun_exp.report.tables import results_table
from stun_exp.stages import check_pattern, plan_experts
from stun_exp.stream import Held, Walk, as_it_is
from stun_exp.thresholds import gate_statistics, layer_thresholds, skipping_json
from stun_exp.unstructured_pruner.pattern import fixed_ratio
from stun_exp.verification import count_written, measured_sparsity, off_target, prove_it_runs
from stun_exp.weight_stage import WeightStage, layer_ratios, prune_layers


def run(settings: Any, out: Path, config: dict[str, Any]) -> None:
    """Executes the pipeline and leaves its artifacts in `out`; ValueError or OSError for what the user can mend.

    `settings` are the checked components, `config` the same settings as plain data, for the report.
    """
    pruner, scope = settings.unstructured_pruner, settings.sparsity_scope
    device = settings.model.torch_device()
    in_nf4 = settings.model.load == "nf4"
    held: Held = as_quantised if in_nf4 else as_it_is
    ledger = Ledger(device)
    _clear(out)
    (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    with ledger.stage("open"):
        checkpoint: Checkpoint = settings.model.open()
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=settings.model.trust_remote_code)
        benchmarks = settings.eval.prepare()
        gates = gate_statistics(settings.skipping, checkpoint)
        if gates and not benchmarks.benchmarks:
            ledger.warn("skipping has no effect on any figure: no benchmark is run (eval=none)")
        if benchmarks.limit is not None:
            ledger.warn(f"eval.limit={benchmarks.limit}: the figures are of each task's first items, for trials only")
        longest = getattr(checkpoint.config, "max_position_embeddings", None)
        if longest is not None and settings.calibration.sequence_length > longest:
            raise ValueError(
                f"calibration.sequence_length={settings.calibration.sequence_length}: the model takes at most {longest}"
                f" tokens (max_position_embeddings); pass calibration.sequence_length={longest} or less"
            )
        tokens = settings.calibration.tokens(tokenizer, settings.seed, decoder_start(checkpoint.config))
        training_NT = training_sequences(
            settings.calibration, tokenizer, settings.seed, settings.recovery.num_sequences
        )
        if checkpoint.packing.packed:
            packing = checkpoint.raw["quantization_config"]["quant_method"]
            ledger.warn(f"the checkpoint is packed ({packing}): unpacked on reading, and written in {checkpoint.dtype}")
        for part, keys in checkpoint.keys.unused.items():
            ledger.warn(
                f"{part} ({len(keys)} tensors) is on disk but not run by the architecture; it is copied unpruned"
            )
        stage = WeightStage(pruner, scope)
        check_pattern(checkpoint, stage)
        # The same totals whichever experts go, so what cannot be met is known before anything is run.
        counts = expected_counts(checkpoint, getattr(settings.expert_pruner, "ratio", 0.0))
        budget = budget_of(checkpoint, counts, settings.sparsity, scope, pruner.attention)
        ratio = _weights_ratio(budget, pruner)
    if settings.dry_run:
        _print_budget(checkpoint, budget, ratio, tokens.num_tokens)
        return

    def walk(what: str, plan: Plan | None = None, runs: bool = True) -> Walk:
        return Walk(checkpoint, tokens.batches_BT, device, what, _apply(plan), runs, tokens.targets_BT, held)

    with ledger.stage("experts") as cost:
        seen, reference = walk("choosing experts"), walk("full model")
        plan = plan_experts(checkpoint, settings.expert_pruner, seen, reference)
        cost.forward_passes = seen.forward_passes + reference.forward_passes
        for warning in plan.warnings:
            ledger.warn(warning)
        routers = {i.layer: router_digest(checkpoint.read_router_rows(i.layer)) for i in plan.layers}
        write_json(out / "plan.json", plan_json(plan, routers))
        write_json(out / "retained_experts.json", retained_experts(plan, checkpoint.config.model_type))
        for name, content in plan.files.items():
            write_json(out / name, content)
        counts = {layer.layer: len(layer.groups) for layer in plan.layers}
        budget = budget_of(checkpoint, counts, settings.sparsity, scope, pruner.attention)
        ratio = _weights_ratio(budget, pruner)
    with ledger.stage("allocate") as cost:
        allocating = walk("allocating", plan, stage.needs_data)
        ratios = layer_ratios(stage, settings.allocation, budget, ratio, allocating, ledger.warn)
        if ratio == 0 and settings.allocation.measures:
            ledger.warn("the allocation has no effect: the weight stage has nothing to prune")
        cost.forward_passes = allocating.forward_passes
    with ledger.stage("prune") as cost:
        writer = CheckpointWriter(checkpoint, out / "checkpoint")
        pruning = walk("pruning", plan, stage.needs_data and ratio > 0)
        diagnostics = Diagnostics(stage.prunable)
        pruning.edit = diagnostics.read(pruning.edit)
        pruned = prune_layers(stage, ratios, pruning, writer, diagnostics.watch)
        cost.forward_passes = pruning.forward_passes
        for index, layer in enumerate(pruned):
            for warning in layer.warnings:
                ledger.warn(warning)
            if layer.starved:
                ledger.warn(
                    f"layer {index}: fewer than unstructured_pruner.min_tokens={pruner.min_tokens} calibration tokens "
                    f"reached expert {', '.join(map(str, layer.starved))} (numbered after the expert stage); "
                    f"starved={pruner.starved} applies; raise calibration.num_sequences"
                )
    with ledger.stage("recover"):
        to_train = PrunedOnDisk(checkpoint, plan, out, device, training_NT, settings.seed, ledger.warn)
        recovery = settings.recovery.recover(to_train)
    with ledger.stage("verify"):
        written = Checkpoint(out / "checkpoint", None)
        on_disk = count_written(written, scope)
        sparsity = measured_sparsity(budget, on_disk, pruned, settings)
        prove_it_runs(Walk(written, tokens.batches_BT[:1], device, "reloading", targets_BT=tokens.targets_BT[:1]))
        for warning in off_target(settings, sparsity["achieved"], sparsity["weights_ratio"]):
            ledger.warn(warning)
    with ledger.stage("skip") as cost:
        gating = Walk(written, tokens.batches_BT, device, "measuring gates", targets_BT=tokens.targets_BT, held=held)
        thresholds = layer_thresholds(settings.skipping, gates, gating)
        if thresholds and settings.save:
            ledger.warn("the written checkpoint does not skip: the thresholds are in report.json alone")
        cost.forward_passes = gating.forward_passes
    with ledger.stage("evaluate"):
        model = load_pruned(out / "checkpoint", device, in_nf4)
        held_in = memory(layers_of(model, written.family), written.outlines) if in_nf4 else []
        check_memory(held_in)
        with skip_experts(model, written.family, {i: threshold.beta for i, threshold in thresholds.items()}) as skips:
            metrics = benchmarks.evaluate(model, tokenizer, device)
        metrics_json = {key: asdict(metric) for key, metric in metrics.items()}
        write_json(out / "metrics.json", metrics_json)

    before = [layer.num_experts for layer in plan.layers]
    after = [len(layer.groups) for layer in plan.layers]
    report = {
        "name": settings.name,
        "seed": settings.seed,
        "settings": config,
        "model": {
            "source": settings.model.path,
            "model_type": checkpoint.config.model_type,
            "params_before": checkpoint.num_parameters,
            "params_after": written.num_parameters,
        },
        "experts": {"before": before, "after": after, "ratio": 1 - sum(after) / sum(before)},
        "sparsity": sparsity,
        "diagnostics": diagnostics.json([layer.measured for layer in ratios]),
        "recovery": recovery,
        "skipping": skipping_json(thresholds, skips),
        "memory": [asdict(part) for part in held_in],
        "metrics": metrics_json,
        "cost": ledger.cost(),
        "warnings": ledger.warnings,
        "provenance": provenance(device, tokens.sha256),
    }
    write_json(out / "sparsity.json", sparsity)
    write_json(out / "report.json", report)
    if not settings.save:
        shutil.rmtree(out / "checkpoint")
    results_table([report]).show()
    try:
        settings.tracker.track(report, out)
    except Exception as error:  # whatever a tracker does, the run's files are on disk and stay
        ledger.warn(f"the tracker failed ({type(error).__name__}: {error}); the results are in {out}")
        write_json(out / "report.json", report)


def _clear(out: Path) -> None:
    """Removes what an interrupted run left behind; ValueError if the folder keeps a finished run's checkpoint."""
    if (out / "report.json").exists() and (out / "checkpoint").exists():
        raise ValueError(f"hydra.run.dir={out} keeps a finished run's checkpoint; delete it or choose another folder")
    shutil.rmtree(out / "checkpoint", ignore_errors=True)
    (out / "report.json").unlink(missing_ok=True)


def _apply(plan: Plan | None) -> Any:
    def edit(layer: MoELayer) -> None:
        layer_plan = plan.of(layer.index) if plan else None
        if layer_plan is not None:
            layer.apply(layer_plan)

    return edit


def _weights_ratio(budget: Budget, pruner: Any) -> float:
    """The second stage's ratio: what the budget leaves to it, what its pattern takes, or nothing."""
    if not pruner.prunes:
        return 0.0
    return fixed_ratio(pruner.pattern) or budget.weights_ratio()


def _print_budget(checkpoint: Checkpoint, budget: Budget, ratio: float, num_tokens: int) -> None:
    out = Console(highlight=False, markup=False)
    out.print(f"model             {checkpoint.path.name}: {checkpoint.num_parameters:,} parameters")
    out.print(f"layers            {checkpoint.num_layers}")
    out.print(f"weights in scope  {budget.in_scope:,}")
    out.print(f"expert stage      {budget.removed:,} weights ({budget.removed / budget.in_scope:.4f})")
    out.print(f"weight stage      {ratio:.4f} of the {budget.prunable:,} weights that it may prune")
    out.print(f"calibration       {num_tokens:,} tokens")
    out.print("dry_run=true: no weights were read")
