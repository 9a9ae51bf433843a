"""What a structured pruner is: it decides which parts of a dense model stay, and what becomes of their weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from stun_exp.moe.coupled import LayerCut, Sizes
    from stun_exp.moe.layers import MoELayer
    from stun_exp.moe.observe import Statistic


@dataclass(frozen=True)
class Cuts:
    """What of each layer stays, in the order of the layers, and what the user should know of it."""

    layers: "Sequence[LayerCut]"
    warnings: Sequence[str] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    """What the report says of how it was decided."""


class StructuredPruner(Component):
    """Decides which parts of a dense model go, from passes over the calibration tokens or from weights alone.

    It meets one layer of the model at a time, and decides for all of them at the end. One of several shots does so
    again on what the last shot has left.
    """

    def removed_share(self) -> float:
        """The share of the decoder's weights that goes."""
        return 0.0

    def expected_share(self, outlines: "Sequence[MoELayer]") -> float:
        """The share of the decoder's weights that is going to go, as far as that is known before data is seen."""
        return self.removed_share()

    def has_equal_layers(self) -> bool:
        """Whether all layers stay equally wide."""
        return True

    def single_sequences(self) -> bool:
        """Whether the calibration must come in batches of one sequence."""
        return False

    def needs_gradients(self) -> bool:
        """Whether layers are run backwards too. All is in 32 bits then, also what is written between shots."""
        return False

    def num_shots(self) -> int:
        """How often it is gone through the model."""
        return 1

    def after(self, shot: int, taken: float) -> "StructuredPruner":
        """The pruner of the next shot, for a model that has lost that share of its weights in `shot` shots."""
        return self

    def check(self, outlines: "Sequence[MoELayer]", multiple: int) -> None:
        """ValueError, before a weight is read, if these layers cannot lose what is asked.

        `multiple` is what widths must be multiples of for the second stage: the m of an n:m pattern, else 1.
        """

    def statistics(self, layer: "MoELayer") -> "list[Statistic]":
        """What to gather in one layer over the calibration tokens; empty if no data is needed."""
        return []

    def examine(self, layer: "MoELayer", statistics: "list[Statistic]") -> Any:
        """What `plan` needs of one layer, whose weights may be looked at."""

    def plan(self, findings: list[Any]) -> Cuts:
        """What stays of all layers; `findings` are in the order of the layers."""
        raise AssertionError("a structured pruner that removes something defines this")

    def adjust_(self, layer: "MoELayer", cut: "LayerCut", statistics: "list[Statistic]") -> None:
        """Makes up, in the weights of a layer that is still whole, for what its cut is going to take."""


class WithRatio(StructuredPruner):
    """A structured pruner that is told how much to remove."""

    ratio: float = Field(gt=0, lt=1)
    """Share of the decoder's weights that goes: of its layers' matrices, embeddings and head left out."""

    def removed_share(self) -> float:
        return self.ratio


class WithHeads(WithRatio):
    """A structured pruner that takes hidden units, and groups of heads where it is told to."""

    heads: bool
    """Whether groups of heads go too."""

    def sizes(self, outlines: "Sequence[MoELayer]") -> "list[Sizes]":
        """What the layers have; ValueError if their heads are to go and cannot by themselves."""
        from stun_exp.moe.coupled import sizes_of

        sizes = [sizes_of(layer) for layer in outlines]
        if self.heads and not all(one.groups for one in sizes):
            raise ValueError(
                f"structured_pruner.heads=true: the heads of {outlines[0].family.model_type} cannot go by themselves; "
                "pass structured_pruner.heads=false"
            )
        return sizes

    def check_ratio(self, outlines: "Sequence[MoELayer]", sizes: "Sequence[Sizes]", fewest_units: int) -> None:
        """ValueError if more is to go than all but one group of heads and so many hidden units of each layer."""
        removable = sum(
            (one.units - fewest_units) * one.unit_weights + self.heads * max(one.groups - 1, 0) * one.group_weights
            for one in sizes
        )
        weights = sum(matrix.weight_OC.numel() for layer in outlines for matrix in layer.matrices())
        if self.ratio * weights > removable:
            units = "one hidden unit" if fewest_units == 1 else f"{fewest_units} hidden units"
            raise ValueError(
                f"structured_pruner.ratio={self.ratio:g}: {units}{' and one group of heads' * self.heads} must stay in "
                f"each layer, so that {removable / weights:.4f} of the weights can go at most; lower it"
            )
