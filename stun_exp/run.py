"""One run, top to bottom: checkpoint -> experts -> weights -> written checkpoint -> benchmarks -> report."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from transformers import AutoTokenizer

from stun_exp.budget import TOLERANCE, Budget, budget_of, expected_counts
from stun_exp.calibration import decoder_start
from stun_exp.disk.checkpoint import Checkpoint
from stun_exp.disk.load import load_pruned
from stun_exp.disk.writer import CheckpointWriter
from stun_exp.moe.layers import MoELayer
from stun_exp.moe.plan import Plan, plan_json, retained_experts, router_digest
from stun_exp.moe.skip import skip_experts
from stun_exp.recovery_stage import PrunedOnDisk, training_sequences
from stun_exp.report.diagnostics import Diagnostics
from stun_exp.report.ledger import Ledger, provenance, write_json
from stun_exp.report.tables import results_table
from stun_exp.stages import LayerCount, check_pattern, count_written, plan_experts, prove_it_runs
from stun_exp.stream import Walk
from stun_exp.thresholds import gate_statistics, layer_thresholds, skipping_json
from stun_exp.unstructured_pruner.pattern import fixed_ratio
from stun_exp.weight_stage import PrunedLayer, WeightStage, layer_ratios, prune_layers


def run(settings: Any, out: Path, config: dict[str, Any]) -> None:
    """Executes the pipeline and leaves its artifacts in `out`; ValueError or OSError for what the user can mend.

    `settings` are the checked components, `config` the same settings as plain data, for the report.
    """
    pruner, scope = settings.unstructured_pruner, settings.sparsity_scope
    device = settings.model.torch_device()
    ledger = Ledger(device)
    _clear(out)
    (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    with ledger.stage("open"):
        checkpoint: Checkpoint = settings.model.open()
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
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
        return Walk(checkpoint, tokens.batches_BT, device, what, _apply(plan), runs, tokens.targets_BT)

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
        measured = walk("allocating", plan, stage.needs_data)
        ratios = layer_ratios(stage, settings.allocation, budget, ratio, measured, ledger.warn)
        if ratio == 0 and settings.allocation.measures:
            ledger.warn("the allocation has no effect: the weight stage has nothing to prune")
        cost.forward_passes = measured.forward_passes
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
        sparsity = _measured(budget, on_disk, pruned, settings)
        first = Walk(written, tokens.batches_BT[:1], device, "reloading", targets_BT=tokens.targets_BT[:1])
        prove_it_runs(first)
        for warning in _off_target(settings, sparsity["achieved"], sparsity["weights_ratio"]):
            ledger.warn(warning)
    with ledger.stage("skip") as cost:
        gating = Walk(written, tokens.batches_BT, device, "measuring gates", targets_BT=tokens.targets_BT)
        thresholds = layer_thresholds(settings.skipping, gates, gating)
        if thresholds and settings.save:
            ledger.warn("the written checkpoint does not skip: the thresholds are in report.json alone")
        cost.forward_passes = gating.forward_passes
    with ledger.stage("evaluate"):
        model = load_pruned(out / "checkpoint", device)
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


def _off_target(settings: Any, achieved: float, weights_ratio: float) -> list[str]:
    """Why the total is not the asked one, if a setting makes it so; ValueError if nothing does."""
    pruner, asked = settings.unstructured_pruner, f"sparsity={settings.sparsity}"
    if abs(achieved - settings.sparsity) <= TOLERANCE:
        return []
    if not pruner.prunes:
        return [
            f"unstructured_pruner=none: removing whole experts takes {achieved:.4f} of the weights in scope "
            f"({settings.sparsity_scope}), not {asked}; sparsity_scope=experts counts experts alone"
        ]
    if fixed_ratio(pruner.pattern):
        return [
            f"unstructured_pruner.pattern={pruner.pattern} takes {weights_ratio:.4g} of what the expert stage "
            f"leaves, {achieved:.4f} of the weights in scope in all, not {asked}"
        ]
    if not settings.allocation.exact:
        return [f"this allocation does not keep to the total: {achieved:.4f} of the weights in scope, not {asked}"]
    raise ValueError(f"asked for {asked}, but {achieved:.4f} is on disk")


def _measured(budget: Budget, on_disk: list[LayerCount], pruned: list[PrunedLayer], settings: Any) -> dict[str, Any]:
    """The report's sparsity: what the written files lack, against what was asked."""
    layers: list[dict[str, Any]] = [
        {
            "layer": index,
            "weights_in_scope": planned.in_scope,
            "removed": planned.in_scope - found.weights,
            "zeros": found.zeros,
            "sparsity": (planned.in_scope - found.weights + found.zeros) / max(planned.in_scope, 1),
            "weights_ratio": layer.ratio,
            "calibration_tokens": layer.tokens,
        }
        for index, (planned, found, layer) in enumerate(zip(budget.layers, on_disk, pruned, strict=True))
    ]
    return {
        "target": settings.sparsity,
        "scope": settings.sparsity_scope,
        "attention": settings.unstructured_pruner.attention and settings.sparsity_scope != "experts",
        "achieved": sum(layer["removed"] + layer["zeros"] for layer in layers) / budget.in_scope,
        "weights_ratio": sum(n.prunable * layer.ratio for n, layer in zip(budget.layers, pruned, strict=True))
        / max(budget.prunable, 1),
        "per_layer": layers,
    }


def _print_budget(checkpoint: Checkpoint, budget: Budget, ratio: float, num_tokens: int) -> None:
    out = Console(highlight=False, markup=False)
    out.print(f"model             {checkpoint.path.name}: {checkpoint.num_parameters:,} parameters")
    out.print(f"layers            {checkpoint.num_layers}")
    out.print(f"weights in scope  {budget.in_scope:,}")
    out.print(f"expert stage      {budget.removed:,} weights ({budget.removed / budget.in_scope:.4f})")
    out.print(f"weight stage      {ratio:.4f} of the {budget.prunable:,} weights that it may prune")
    out.print(f"calibration       {num_tokens:,} tokens")
    out.print("dry_run=true: no weights were read")
