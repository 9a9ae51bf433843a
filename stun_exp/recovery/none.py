"""No training after pruning."""

from pathlib import Path

from stun_exp.component import Component


class NoRecovery(Component):
    """Leaves the pruned checkpoint as it is."""

    def recover(self, checkpoint: Path) -> None:
        return None
