"""What a dry run prints."""

import sys

from rich.console import Console

from stun_exp.checkpoint.architecture import Architecture
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.config.settings import Settings
from stun_exp.data.missing import Missing
from stun_exp.pipeline.budget import Budget, expected_counts
from stun_exp.pipeline.preflight import Checked, Refusals, budget_left, check_length, check_pattern
from stun_exp.pipeline.weight_stage import WeightStage

_said: set[Missing] = set()
"""What this process has said to be missing."""


def print_budget(checkpoint: Checkpoint, checked: Checked, num_tokens: int) -> None:
    """What a run would take from the model, by stage and, of experts, by layer."""
    kept = checked.kept
    _print(checkpoint, checkpoint.path.name, checked.budget, checked.ratio, kept.told, num_tokens)
    read = "of the weights only routers were read" if kept.routers_read else "no weights were read"
    _console().print(f"dry_run=true: {read}")


def plan_by_card(settings: Settings, told: Refusals) -> None:
    """The same of a model that is not on this machine, by the dimensions on its card, and what else is not.

    ValueError if that alone shows that the run cannot be.
    """
    architecture = settings.model.architecture()
    budget = None
    with told.noted():
        check_length(settings.calibration, architecture)
    with told.noted():
        check_pattern(architecture, WeightStage(settings.unstructured_pruner, settings.sparsity_scope))
    with told.noted():
        counts = expected_counts(architecture, settings.expert_pruner.removed_share())
        budget, ratio = budget_left(settings, architecture, counts)
    if told.lines or budget is None:
        told.tell()
        return
    num_tokens = settings.calibration.num_sequences * settings.calibration.sequence_length
    kept = ["not known yet, the model is not on this machine"] if budget.removed else ["all"]
    _print(architecture, settings.model.path, budget, ratio, kept, num_tokens)
    _console().print("dry_run=true: by the card's dimensions; weights, tokenizer, text and export were not checked")
    # What has been said of an earlier point of the sweep is not said again.
    told.missing = [one for one in dict.fromkeys(told.missing) if one not in _said]
    _said.update(told.missing)
    print(*told.told_missing(), sep="\n", end="\n" if told.missing else "", file=sys.stderr)


def _print(
    model: Architecture, name: str, budget: Budget, ratio: float, experts_kept: list[str], num_tokens: int
) -> None:
    out = _console()
    out.print(f"model             {name}: {model.num_parameters:,} parameters")
    out.print(f"layers            {model.num_layers}")
    out.print(f"weights in scope  {budget.in_scope:,}")
    out.print(f"expert stage      {budget.removed:,} weights ({budget.removed / budget.in_scope:.4f})")
    for place, line in enumerate(experts_kept):
        out.print(f"{'' if place else 'experts kept':<18}{line}")
    out.print(f"weight stage      {ratio:.4f} of the {budget.prunable:,} weights that it may prune")
    out.print(f"calibration       {num_tokens:,} tokens")


def _console() -> Console:
    return Console(highlight=False, markup=False, soft_wrap=True)
