"""What a dry run prints."""

from rich.console import Console

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.pipeline.preflight import Checked


def print_budget(checkpoint: Checkpoint, checked: Checked, num_tokens: int) -> None:
    """What a run would take from the model, by stage and, of experts, by layer."""
    out = Console(highlight=False, markup=False)
    budget, kept = checked.budget, checked.kept
    out.print(f"model             {checkpoint.path.name}: {checkpoint.num_parameters:,} parameters")
    out.print(f"layers            {checkpoint.num_layers}")
    out.print(f"weights in scope  {budget.in_scope:,}")
    out.print(f"expert stage      {budget.removed:,} weights ({budget.removed / budget.in_scope:.4f})")
    for place, line in enumerate(kept.told):
        out.print(f"{'' if place else 'experts kept':<18}{line}")
    out.print(f"weight stage      {checked.ratio:.4f} of the {budget.prunable:,} weights that it may prune")
    out.print(f"calibration       {num_tokens:,} tokens")
    read = "of the weights only routers were read" if kept.routers_read else "no weights were read"
    out.print(f"dry_run=true: {read}")
