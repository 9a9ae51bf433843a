"""What a decoder layer is called with, seen while the model runs without its layers.

Shapes: B sequences of a batch, T tokens, D hidden size.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from stun_exp.checkpoint.scratch import Spill

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Those of one call, without the hidden states."""


class Recorder(nn.Module):
    """Stands in for a layer: keeps its arguments, and hands on its input, or what it is told that the layer gives."""

    def __init__(self, layer: nn.Module, num_outputs: int, outputs_BTD: Sequence[Tensor], spill: Spill):
        super().__init__()
        self.spill = spill
        self.calls: list[Arguments] = []
        self.inputs_BTD: list[Tensor] = []
        self.keeps_inputs = False
        self.num_outputs = num_outputs
        self.outputs_BTD = outputs_BTD
        for name, value in vars(layer).items():  # models look at attributes of their layers, its type of attention, say
            if not name.startswith("_") and not hasattr(self, name):
                setattr(self, name, value)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        given = self.outputs_BTD[len(self.calls)].to(hidden_states.device) if self.outputs_BTD else hidden_states
        self.calls.append((args, kwargs))
        if self.keeps_inputs:
            self.spill.keep(self.inputs_BTD, hidden_states)
        return (given, *[None] * (self.num_outputs - 1)) if self.num_outputs > 1 else given
