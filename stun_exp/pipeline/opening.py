"""The first stage of a run: what it works on, and every reason not to begin."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from stun_exp.calibration.protocol import CalibrationTokens, decoder_start
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.identity import Digests, census_of
from stun_exp.checkpoint.shards import INDEX
from stun_exp.checkpoint.writer import names_in
from stun_exp.config.settings import Point
from stun_exp.evaluation.benchmarks import Prepared
from stun_exp.moe.skip import GateRatios
from stun_exp.pipeline.budget import Budget, budget_of, expected_counts, weights_ratio
from stun_exp.pipeline.dry_run import print_budget
from stun_exp.pipeline.evaluate import check_backend
from stun_exp.pipeline.experts import check_pattern
from stun_exp.pipeline.preflight import Refusals, check_length, check_room, known_at_once, load_tokenizer
from stun_exp.pipeline.prune import WeightStage
from stun_exp.pipeline.recover import training_sequences
from stun_exp.pipeline.skip import gate_statistics
from stun_exp.pipeline.source_zeros import WORTH_SAYING, LayerZeros, check_reachable, share_of, zeros_of
from stun_exp.state.cache import Store
from stun_exp.state.finished import Kept, fingerprint_of, is_finished, missing_files
from stun_exp.state.journal import JOURNAL, made_of, read_records
from stun_exp.state.ownership import check_folder, remove
from stun_exp.unstructured_pruner.pattern import fixed_ratio

ARTIFACTS = (
    *("config.yaml", "metrics.json", "plan.json", "report.json", "retained_experts.json", "sparsity.json"),
    *("samples.jsonl", "baseline_samples.jsonl", "recovery/state.pt"),
)
"""What a run writes in its folder, besides the checkpoint and the files that explain a plan."""


@dataclass
class Opened:
    """What a run works on."""

    point: Point
    checkpoint: Checkpoint
    tokenizer: Any
    tokens: CalibrationTokens
    training_NT: Tensor
    own: set[str]
    """The files in the run's folder that runs have written there."""
    digests: Digests
    identity: dict[str, str]
    ingredients: dict[str, Any]
    fingerprint: str
    stage: WeightStage
    benchmarks: Prepared = field(default_factory=lambda: Prepared(()))
    gates: dict[int, GateRatios] = field(default_factory=dict)
    zeros: list[LayerZeros] = field(default_factory=list)
    source_zeros: float = 0.0
    """Share of the weights in scope that is zero before anything is pruned."""
    finished: bool = False
    """Whether the folder holds all that this run would leave."""

    def own_in(self, folder: str) -> list[str]:
        """Those of the run's own files that lie in a folder there; the index first, with which a folder is whole."""
        inside = (name for name in self.own if name.startswith(f"{folder}/"))
        return sorted(inside, key=lambda name: (not name.endswith(INDEX), name))


def open_inputs(point: Point, device: torch.device, store: Store, warn: Callable[[str], None]) -> Opened | None:
    """What the run at a point works on; None for a dry run, which prints the budget instead.

    ValueError or OSError with every reason not to begin. What is finished already is looked at no further.
    """
    settings: Any = point.settings
    checkpoint: Checkpoint = settings.model.open(settings.stream.scratch(point.out))
    told, digests = Refusals(), Digests(store)
    own: set[str] = set()
    with told.noted():
        own = own_files(point.out)
        check_folder(point.out, checkpoint.path, own, names_of(checkpoint))
    inputs = None
    with told.noted():
        tokenizer = load_tokenizer(checkpoint, settings.model.trust_remote_code)
        with told.noted():
            inputs = (tokenizer, *_text(settings, checkpoint, tokenizer, store, digests, point.out))
    opened = None
    if inputs and not told.lines and not settings.dry_run:
        opened = _identified(point, device, checkpoint, inputs, own, digests)
        if settings.resume == "continue" and is_finished(point.out, opened.fingerprint):
            if _is_whole(opened, warn):
                opened.finished = True
                return opened
            remove(point.out, ["report.json"])
    prepared = _checked(settings, checkpoint, inputs[0] if inputs else None, told)
    told.tell()
    assert inputs is not None
    assert prepared is not None
    if opened is None:
        _, tokens, _ = inputs
        print_budget(
            checkpoint, prepared.budget, weights_ratio(prepared.budget, settings.unstructured_pruner), tokens.num_tokens
        )
        return None
    opened.benchmarks, opened.gates = prepared.benchmarks, prepared.gates
    _count_zeros(opened, prepared.budget, prepared.num_removed, store)
    ratio = getattr(settings.expert_pruner, "ratio", 0.0)
    in_nf4 = settings.model.load == "nf4"
    for warning in known_at_once(checkpoint, opened.benchmarks, bool(opened.gates), in_nf4, opened.source_zeros, ratio):
        warn(warning)
    return opened


def own_files(out: Path) -> set[str]:
    """The files in a run's folder that runs have written there, by their journal."""
    records, _ = read_records(out / JOURNAL, torn=True)
    return {str(name) for record in records for name in record.get("writes", ())}


def names_of(checkpoint: Checkpoint) -> list[str]:
    """The files that a run writes in its folder, but for those that explain a plan."""
    return [*ARTIFACTS, *(f"checkpoint/{name}" for name in names_in(checkpoint))]


def _text(
    settings: Any, checkpoint: Checkpoint, tokenizer: Any, store: Store, digests: Digests, out: Path
) -> tuple[CalibrationTokens, Tensor]:
    """What the model is calibrated on, and what a recovery trains on."""
    check_length(settings.calibration, checkpoint)
    check_room(settings, checkpoint, out)
    start, companions = decoder_start(checkpoint.config), checkpoint.companions(digests.of)
    tokens = settings.calibration.drawn(tokenizer, settings.seed, start, companions, store, digests.of)
    return tokens, training_sequences(settings.calibration, tokenizer, settings.seed, settings.recovery.num_sequences)


def _identified(
    point: Point,
    device: torch.device,
    checkpoint: Checkpoint,
    inputs: tuple[Any, CalibrationTokens, Tensor],
    own: set[str],
    digests: Digests,
) -> Opened:
    settings: Any = point.settings
    tokenizer, tokens, training_NT = inputs
    identity = checkpoint.identity(digests.of)
    ingredients = made_of(point.config, identity, device, tokens.sha256, training_NT)
    return Opened(
        point=point,
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        tokens=tokens,
        training_NT=training_NT,
        own=own,
        digests=digests,
        identity=identity,
        ingredients=ingredients,
        fingerprint=fingerprint_of(ingredients, point.config),
        stage=WeightStage(settings.unstructured_pruner, settings.sparsity_scope),
    )


def _is_whole(opened: Opened, warn: Callable[[str], None]) -> bool:
    """Whether a finished run has all that it kept; ValueError for a file that somebody has changed."""
    settings: Any = opened.point.settings
    if not (settings.save or settings.export.keeps_checkpoint):
        return True
    out = opened.point.out
    records, _ = read_records(out / JOURNAL)
    kept = next((record["value"] for record in reversed(records) if record.get("stage") == "kept"), None)
    missing = (
        ["checkpoint"]
        if kept is None
        else missing_files(out, TypeAdapter(Kept).validate_python(kept), opened.digests.of)
    )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        warn(f"{out / missing[0]}{more}: the run was finished, and this is gone; it is made again")
    return not missing


@dataclass(frozen=True)
class _Prepared:
    """What the checks have made."""

    benchmarks: Prepared
    gates: dict[int, GateRatios]
    budget: Budget
    num_removed: int


def _checked(settings: Any, checkpoint: Checkpoint, tokenizer: Any, told: Refusals) -> _Prepared | None:
    """What settings, config and index show together; each mistake is noted, and None if there is one."""
    pruner, in_nf4 = settings.unstructured_pruner, settings.model.load == "nf4"
    ratio = getattr(settings.expert_pruner, "ratio", 0.0)
    benchmarks, gates, budget, counts = None, None, None, dict[int, int]()
    with told.noted():
        gates = gate_statistics(settings.skipping, checkpoint)
    with told.noted():
        benchmarks = settings.eval.prepare()
        check_backend(benchmarks, checkpoint, in_nf4, bool(gates))
        if tokenizer is not None:
            benchmarks.check(tokenizer)
    with told.noted():
        check_pattern(checkpoint, WeightStage(pruner, settings.sparsity_scope))
    with told.noted():
        # The same totals whichever experts go, so what cannot be met is known before anything is run.
        counts = expected_counts(checkpoint, ratio)
        budget = budget_of(checkpoint, counts, settings.sparsity, settings.sparsity_scope, pruner.attention)
        weights_ratio(budget, pruner)
    with told.noted():
        equal = getattr(settings.expert_pruner, "budget", "per_layer") == "per_layer"
        settings.export.check(checkpoint, ratio, equal)
    if told.lines or benchmarks is None or gates is None or budget is None:
        return None
    num_removed = sum(checkpoint.outline(layer).num_experts - count for layer, count in counts.items())
    return _Prepared(benchmarks, gates, budget, num_removed)


def _count_zeros(opened: Opened, budget: Budget, num_removed: int, store: Store) -> None:
    """Looks at every weight of the source, once for all runs of it; ValueError if its zeros rule the budget out."""
    settings: Any = opened.point.settings
    census = census_of(opened.checkpoint, opened.identity, store)
    opened.zeros = zeros_of(opened.checkpoint, census, opened.stage)
    share = share_of(opened.zeros, census, budget, settings.sparsity_scope)
    opened.source_zeros = share if share >= WORTH_SAYING else 0.0
    if settings.unstructured_pruner.prunes and not fixed_ratio(settings.unstructured_pruner.pattern):
        check_reachable(opened.zeros, budget, num_removed, share)
