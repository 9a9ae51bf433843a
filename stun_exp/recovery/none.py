"""No training after pruning."""

from typing import TYPE_CHECKING, ClassVar

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from stun_exp.recovery.protocol import PrunedModel


class NoRecovery(Component):
    """Leaves the pruned checkpoint as it is."""

    num_sequences: ClassVar[int] = 0

    def recover(self, pruned: "PrunedModel") -> None:
        return None
