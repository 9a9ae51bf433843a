"""What dynamic skipping is: which of a token's experts are not worth running, decided as the model is used."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.skip import GateRatios


class Skipping(Protocol):
    """Decides each layer's threshold; changes nothing. `moe.skip` applies it to a model in use."""

    @property
    def skips(self) -> bool:
        """Whether experts are skipped at all."""
        ...

    def statistic(self, layer: "ExpertSource") -> "GateRatios | None":
        """What to gather in one layer of the pruned model over the calibration tokens; None to skip nothing there.

        ValueError if the layer has nothing to skip.
        """
        ...

    def beta(self, ratios: "GateRatios") -> float:
        """The layer's threshold: a token's smaller gates go if their sum is below beta times that of the others."""
        ...
