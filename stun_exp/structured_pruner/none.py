"""Leave the model its shape."""

from stun_exp.structured_pruner.protocol import StructuredPruner


class NoStructure(StructuredPruner):
    """Removes nothing."""
