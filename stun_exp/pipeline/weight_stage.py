"""What the weight stage may touch."""

from dataclasses import dataclass

from stun_exp.moe.layers import Matrix, MoELayer
from stun_exp.pipeline.budget import Scope, kinds_in_scope
from stun_exp.unstructured_pruner.protocol import UnstructuredPruner


@dataclass(frozen=True)
class WeightStage:
    """Which matrices the second stage touches, and with what."""

    pruner: UnstructuredPruner
    scope: Scope

    @property
    def needs_data(self) -> bool:
        """Whether the pruner looks at inputs, and not at weights alone."""
        return self.pruner.statistic(1) is not None

    def prunable(self, layer: MoELayer) -> list[Matrix]:
        """All matrices that may be pruned."""
        kinds = kinds_in_scope(self.scope)
        if not self.pruner.attention:
            kinds = kinds - {"attention"}
        return [matrix for matrix in layer.matrices() if matrix.kind in kinds]

    def matrices(self, layer: MoELayer) -> list[Matrix]:
        """All that may be pruned; ValueError that names one with NaN or infinity in it."""
        matrices = self.prunable(layer)
        for matrix in matrices:
            if not matrix.weight_OC.isfinite().all():
                raise ValueError(f"layer {layer.index}: {matrix.name} holds NaN or infinity; the checkpoint is damaged")
        return matrices
