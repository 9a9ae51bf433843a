"""Walk a checkpoint one decoder layer at a time: the only place that moves layers between devices.

Shapes: B sequences of a batch, T tokens, D hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stun_exp.checkpoint import Checkpoint
from stun_exp.moe.layers import MoELayer, decoder_layers
from stun_exp.progress import track

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Step:
    """One decoder layer on the device, with the hidden states that reach it."""

    def __init__(self, layer: MoELayer, hidden_BTD: list[Tensor], arguments: list[Arguments]):
        self.layer = layer
        self.hidden_BTD = hidden_BTD
        self._arguments = arguments
        self.outputs_BTD: list[Tensor] | None = None
        self.passes = 0.0

    @torch.inference_mode()
    def forward(self, passes: float = 1.0) -> None:
        """Runs every batch through the layer as it is now; its outputs feed the next layer unless it is changed.

        `passes` is what it counts for: observed so that every expert runs on every token, a layer does the work of
        num_experts / top_k ordinary passes.
        """
        self.outputs_BTD = []
        for hidden, (args, kwargs) in zip(self.hidden_BTD, self._arguments, strict=True):
            output = self.layer.module(hidden, *args, **kwargs)
            self.outputs_BTD.append(output[0] if isinstance(output, tuple) else output)
        self.passes += passes

    def changed(self) -> None:
        """Says that the layer's weights are no longer those that `forward` ran with."""
        self.outputs_BTD = None


class Walk:
    """The layers of a checkpoint in order, each read, yielded, run on the calibration tokens and forgotten.

    `edit` is applied to each layer as it is read (the expert stage). A layer that the caller changed (`Step.changed`)
    or has not run is run again when the walk goes on, so the next layer sees what its predecessors have become.
    With `runs` off the layers are only read and yielded, for work that looks at weights alone. `forward_passes` counts
    whole-model passes over the tokens.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens_BT: Sequence[Tensor],
        device: torch.device,
        what: str,
        edit: Callable[[MoELayer], None] = lambda layer: None,
        runs: bool = True,
    ):
        self.checkpoint = checkpoint
        self.tokens_BT = tokens_BT
        self.device = device
        self.what = what
        self.edit = edit
        self.runs = runs
        self.layer_passes = 0.0

    @property
    def forward_passes(self) -> float:
        return self.layer_passes / self.checkpoint.num_layers

    def __iter__(self) -> Iterator[Step]:
        hidden_BTD: list[Tensor] = []
        arguments: list[list[Arguments]] = [[]] * self.checkpoint.num_layers
        if self.runs:
            hidden_BTD, arguments = _first_inputs(self.checkpoint, self.tokens_BT, self.device)
        for index in track(range(self.checkpoint.num_layers), self.what):
            layer = self.checkpoint.read_layer(index)
            self.edit(layer)
            layer.module.to(self.device)
            step = Step(layer, hidden_BTD, arguments[index])
            yield step
            if self.runs and step.outputs_BTD is None and index + 1 < self.checkpoint.num_layers:
                step.forward()
            self.layer_passes += step.passes
            hidden_BTD = step.outputs_BTD or []


class _Recorder(nn.Module):
    """Stands in for a decoder layer: hands its input on and keeps the other arguments."""

    def __init__(self, calls: list[Arguments]):
        super().__init__()
        self.calls = calls

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.calls.append((args, kwargs))
        return hidden_states


@torch.inference_mode()
def _first_inputs(
    checkpoint: Checkpoint, tokens_BT: Sequence[Tensor], device: torch.device
) -> tuple[list[Tensor], list[list[Arguments]]]:
    """The embedded batches, and for each layer and batch the arguments (masks, positions) the model passes with them.

    The model itself is run with its layers replaced by recorders, so no architecture's mask or position code is
    written here again. All calibration sequences are whole: batches of one shape share one set of arguments.
    """
    shell = checkpoint.read_shell()
    layers = decoder_layers(shell)
    calls: list[list[Arguments]] = [[] for _ in layers]
    for index in range(len(layers)):
        layers[index] = _Recorder(calls[index])
    model = shell.model.to(device)
    embedded: list[Tensor] = []
    model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: embedded.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    first: dict[torch.Size, int] = {}
    for number, tokens in enumerate(tokens_BT):
        model(input_ids=tokens.to(device), use_cache=False)
        seen = first.setdefault(tokens.shape, number)
        if seen != number:
            for call in calls:
                call[number] = call[seen]
    return embedded, calls
