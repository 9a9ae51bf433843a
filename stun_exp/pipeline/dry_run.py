"""What a dry run prints."""

from rich.console import Console

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.pipeline.budget import Budget


def print_budget(checkpoint: Checkpoint, budget: Budget, ratio: float, num_tokens: int) -> None:
    """What a run would take from the model, by stage."""
    out = Console(highlight=False, markup=False)
    out.print(f"model             {checkpoint.path.name}: {checkpoint.num_parameters:,} parameters")
    out.print(f"layers            {checkpoint.num_layers}")
    out.print(f"weights in scope  {budget.in_scope:,}")
    out.print(f"expert stage      {budget.removed:,} weights ({budget.removed / budget.in_scope:.4f})")
    out.print(f"weight stage      {ratio:.4f} of the {budget.prunable:,} weights that it may prune")
    out.print(f"calibration       {num_tokens:,} tokens")
    out.print("dry_run=true: no weights were read")
