"""One run, top to bottom: checkpoint -> experts -> weights -> written checkpoint -> benchmarks -> report."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from transformers import AutoTokenizer

from stun_exp.budget import TOLERANCE, Budget, budget_of, expected_counts
from stun_exp.checkpoint import Checkpoint, CheckpointWriter, load_pruned
from stun_exp.moe.layers import MoELayer
from stun_exp.moe.plan import Plan, plan_json, retained_experts, router_digest
from stun_exp.moe.skip import skip_experts
from stun_exp.report.ledger import Ledger, provenance, write_json
from stun_exp.report.tables import results_table
from stun_exp.stages import (
    LayerCount,
    WeightStage,
    count_written,
    layer_ratios,
    plan_experts,
    prove_it_runs,
    prune_layers,
)
from stun_exp.stream import Walk
from stun_exp.thresholds import gate_statistics, layer_thresholds, skipping_json


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
        tokens = settings.calibration.tokens(tokenizer, settings.seed)
        for index in checkpoint.unused_layers():
            ledger.warn(f"layer {index} is on disk but not part of the architecture; it is copied unpruned")
        # The same totals whichever experts go, so what cannot be met is known before anything is run.
        counts = expected_counts(checkpoint, getattr(settings.expert_pruner, "ratio", 0.0))
        budget = budget_of(checkpoint, counts, settings.sparsity, scope, pruner.attention)
        ratio = budget.weights_ratio() if pruner.prunes else 0.0
    if settings.dry_run:
        _print_budget(checkpoint, budget, ratio, tokens.num_tokens)
        return

    def walk(what: str, plan: Plan | None = None, runs: bool = True) -> Walk:
        return Walk(checkpoint, tokens.batches_BT, device, what, _apply(plan), runs)

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
        ratio = budget.weights_ratio() if pruner.prunes else 0.0
    with ledger.stage("allocate") as cost:
        stage = WeightStage(pruner, scope)
        measured = walk("allocating", plan, stage.needs_data)
        ratios = layer_ratios(stage, settings.allocation, budget, ratio, measured)
        if ratio == 0 and settings.allocation.measures:
            ledger.warn("the allocation has no effect: the weight stage has nothing to prune")
        cost.forward_passes = measured.forward_passes
    with ledger.stage("prune") as cost:
        writer = CheckpointWriter(checkpoint, out / "checkpoint")
        pruning = walk("pruning", plan, stage.needs_data and ratio > 0)
        starved = prune_layers(stage, ratios, pruning, writer)
        cost.forward_passes = pruning.forward_passes
        for index, experts in starved.items():
            ledger.warn(
                f"layer {index}: no calibration token reached expert {', '.join(map(str, experts))} (numbered after "
                "the expert stage); pruned by magnitude; raise calibration.num_sequences"
            )
    with ledger.stage("recover"):
        settings.recovery.recover(out / "checkpoint")
    with ledger.stage("verify"):
        written = Checkpoint(out / "checkpoint", None)
        on_disk = count_written(written, scope)
        sparsity = _measured(budget, on_disk, ratios, settings)
        prove_it_runs(Walk(written, tokens.batches_BT[:1], device, "reloading"))
        if pruner.prunes and abs(sparsity["achieved"] - settings.sparsity) > TOLERANCE:
            raise ValueError(f"asked for sparsity={settings.sparsity}, but {sparsity['achieved']:.4f} is on disk")
        if abs(sparsity["achieved"] - settings.sparsity) > TOLERANCE:
            ledger.warn(
                f"unstructured_pruner=none: removing whole experts takes {sparsity['achieved']:.4f} of the weights in "
                f"scope ({scope}), not sparsity={settings.sparsity}; sparsity_scope=experts counts experts alone"
            )
    with ledger.stage("skip") as cost:
        gating = Walk(written, tokens.batches_BT, device, "measuring gates")
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


def _measured(budget: Budget, on_disk: list[LayerCount], ratios: list[float], settings: Any) -> dict[str, Any]:
    """The report's sparsity: what the written files lack, against what was asked."""
    layers = [
        {
            "layer": index,
            "weights_in_scope": planned.in_scope,
            "removed": planned.in_scope - found.weights,
            "zeros": found.zeros,
            "sparsity": (planned.in_scope - found.weights + found.zeros) / max(planned.in_scope, 1),
            "weights_ratio": ratio,
        }
        for index, (planned, found, ratio) in enumerate(zip(budget.layers, on_disk, ratios, strict=True))
    ]
    return {
        "target": settings.sparsity,
        "scope": settings.sparsity_scope,
        "attention": settings.unstructured_pruner.attention and settings.sparsity_scope != "experts",
        "achieved": sum(int(layer["removed"]) + int(layer["zeros"]) for layer in layers) / budget.in_scope,
        "weights_ratio": sum(n.prunable * r for n, r in zip(budget.layers, ratios, strict=True))
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
