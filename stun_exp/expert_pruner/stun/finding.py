"""What STUN finds in one layer.

Shapes: E experts of a layer.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.statistics import ExpertActivity


@dataclass(frozen=True)
class Finding:
    """What the plan needs of one layer."""

    layer: "ExpertSource"
    num_kept: int
    distance_EE: "np.ndarray"
    weight_distance_EE: "np.ndarray | None"
    activity: "ExpertActivity | None"
    alone: "dict[str, np.ndarray | None]"
    """For the laboratory: the distances by one similarity alone; None where it says nothing."""
