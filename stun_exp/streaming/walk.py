"""Walk a checkpoint one decoder layer at a time: the only place that moves layers between devices.

Shapes: B sequences of a batch, T tokens, D hidden size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.scratch import IN_MEMORY, Spill, give_back
from stun_exp.moe.layers import MoELayer
from stun_exp.moe.plan import Plan
from stun_exp.state.statistics_cache import DenseInputs
from stun_exp.streaming.recorder import Arguments, Recorder
from stun_exp.utils.progress import track

PrecisionContext = Callable[[MoELayer], AbstractContextManager[None]]
"""A block inside which a layer computes as if its weights were held otherwise, in 4 bits say."""


@contextmanager
def as_it_is(layer: MoELayer) -> Iterator[None]:
    """The layer computes with its own weights."""
    yield


class Step:
    """One decoder layer on the device, with the hidden states that reach it."""

    def __init__(
        self,
        layer: MoELayer,
        hidden_BTD: list[Tensor],
        arguments: list[Arguments],
        precision: PrecisionContext = as_it_is,
        spill: Spill = IN_MEMORY,
        dense: DenseInputs | None = None,
        num_layers: int = 1,
    ):
        self.layer = layer
        self.num_layers = num_layers
        self.precision = precision
        self.spill = spill
        self.hidden_BTD = hidden_BTD
        self.dense = dense
        """What is known of its inputs, if they come through layers as the expert stage left them."""
        self.arguments = arguments
        self.outputs_BTD: list[Tensor] | None = None
        self.handed_on: list[dict[int, Any]] = []
        """For each batch, what the next layer takes besides hidden states, by its place among the arguments."""
        self.passes = 0.0

    @torch.inference_mode()
    def forward(self, passes: float = 1.0, batches: int | None = None) -> None:
        """Runs the first few batches, or all, through the layer as it is now.

        The outputs feed the next layer unless it is changed.

        `passes` is what it counts for: observed so that every expert runs on every token, a layer does the work of
        num_experts / top_k ordinary passes.
        """
        self.outputs_BTD, self.handed_on = [], []
        device = next(self.layer.module.parameters()).device
        with self.precision(self.layer):
            for hidden, (args, kwargs) in islice(zip(self.hidden_BTD, self.arguments, strict=True), batches):
                output = self.layer.module(hidden.to(device), *args, **kwargs)
                self.spill.keep(self.outputs_BTD, output[0] if isinstance(output, tuple) else output)
                self.handed_on.append({there: output[here] for here, there in self.layer.family.hands_on.items()})
        self.passes += passes * len(self.outputs_BTD) / max(len(self.hidden_BTD), 1)

    def with_layer(self, layer: MoELayer) -> "Step":
        """Another layer in the place of this one, with the hidden states that reach it."""
        step = Step(layer, self.hidden_BTD, self.arguments, self.precision, self.spill, None, self.num_layers)
        layer.module.to(next(self.layer.module.parameters()).device)
        return step

    def changed(self) -> None:
        """Says that the layer's weights are no longer those that `forward` ran with."""
        self.outputs_BTD = None


class Walk:
    """The layers of a checkpoint in order, each read, yielded, run on the calibration tokens and forgotten.

    Layers are read as `plan` leaves them, the next one while the caller works on one, and `edit` is applied to each. A
    layer that the caller changed (`Step.changed`) or has not run is run again when the walk goes on, so the next layer
    sees what its predecessors have become. Hidden states that take more room than `spill` allows lie in files.
    An encoder-decoder takes `targets_BT` besides: what its decoder reads of each batch. With `runs` off the layers are
    only read and yielded, for work that looks at weights alone. `precision` is how weights are held while a layer
    runs; the caller sees and changes the layer's own. `dense` is what is known of the layers' inputs, where these come
    through layers as the plan leaves them. `forward_passes` counts whole-model passes over all calibration tokens.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens_BT: Sequence[Tensor],
        device: torch.device,
        what: str,
        plan: Plan | None = None,
        runs: bool = True,
        targets_BT: Sequence[Tensor] = (),
        precision: PrecisionContext = as_it_is,
        spill: Spill = IN_MEMORY,
        dense: DenseInputs | None = None,
    ):
        self.checkpoint = checkpoint
        self.plan = plan
        self.spill = spill
        self.dense = dense
        self.tokens_BT = tokens_BT
        self.targets_BT = targets_BT
        self.device = device
        self.what = what
        self.edit: Callable[[MoELayer], None] = lambda layer: None
        self.runs = runs
        self.precision = precision
        self.share = 1.0
        self.layer_passes = 0.0
        self._hidden_BTD: list[Tensor] = []
        self._arguments: dict[int, list[Arguments]] = {}

    @property
    def forward_passes(self) -> float:
        return self.share * self.layer_passes / self.checkpoint.num_layers

    def take_batches(self, number: int) -> None:
        """Goes on with the first few of the batches alone."""
        total = len(self.tokens_BT)
        self.tokens_BT, self.targets_BT = self.tokens_BT[:number], self.targets_BT[:number]
        self.share = len(self.tokens_BT) / total

    def __iter__(self) -> Iterator[Step]:
        for _, step in walk_together([self]):
            yield step

    def layers(self, backwards: bool = False) -> Iterator[MoELayer]:
        """Layer after layer as it is read, the next while the caller works on one; `backwards` from the last on."""
        order = range(self.checkpoint.num_layers)
        order = order[::-1] if backwards else order
        with ThreadPoolExecutor(1) as reader:
            following = reader.submit(self._read, order[0])
            for place, _ in enumerate(track(order, self.what), 1):
                layer = following.result()
                if place < len(order):
                    following = reader.submit(self._read, order[place])
                yield layer
                del layer
                give_back()

    def _read(self, index: int) -> MoELayer:
        return self.checkpoint.read_planned(index, self.plan.of(index) if self.plan else None)

    def begin(self, layer: MoELayer) -> Step:
        """The next layer with the hidden states that reach it; `end` is to be called when it has been worked on."""
        if layer.index in self._stacks:
            stack = self._first_inputs(layer.index, self._stacks[layer.index], self._hidden_BTD)
            self._hidden_BTD, self._arguments = stack[0], dict(enumerate(stack[1], layer.index))
        self.edit(layer)
        layer.module.to(self.device)
        arguments = self._arguments.pop(layer.index)
        num_layers = self.checkpoint.num_layers
        return Step(layer, self._hidden_BTD, arguments, self.precision, self.spill, self.dense, num_layers)

    def end(self, step: Step) -> None:
        """Takes what the layer gives, as it is now, to the next one."""
        after = step.layer.index + 1
        # Nobody takes what the last layer of all gives; an encoder's last feeds the decoder.
        if self.runs and step.outputs_BTD is None and after < self.checkpoint.num_layers:
            step.forward()
        self.layer_passes += step.passes
        self._hidden_BTD = step.outputs_BTD or []
        if self.runs and after in self._arguments:
            calls = zip(self._arguments[after], step.handed_on, strict=True)
            self._arguments[after] = [_with(call, handed) for call, handed in calls]

    @cached_property
    def _stacks(self) -> dict[int, int]:
        """The first layer of each stack, and the layers that the stack has."""
        sizes = [len(stack) for stack in self.checkpoint.stacks]
        return dict(zip(accumulate([0, *sizes]), sizes, strict=False))

    @torch.inference_mode()
    def _first_inputs(
        self, first: int, num_layers: int, before_BTD: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[list[Arguments]]]:
        """The batches as they come to a stack that begins with layer `first`, and the arguments of its layers.

        `before_BTD` is what the last layer of the stack before gives. The model itself is run with its layers replaced
        by recorders, so no architecture's mask or position code is written here again. All calibration sequences are
        whole: batches of one shape share one set of arguments, unless an encoder's outputs are among them.
        """
        if not self.runs:
            return [], [[] for _ in range(num_layers)]
        shell = self.checkpoint.read_shell()
        num_outputs = 1 + max(self.checkpoint.family.hands_on, default=0)
        recorders = []
        for index, path in enumerate(self.checkpoint.paths):
            outputs_BTD = before_BTD if index == first - 1 else ()
            recorders.append(Recorder(shell.get_submodule(path), num_outputs, outputs_BTD, self.spill))
            shell.set_submodule(path, recorders[-1])
        recorders[first].keeps_inputs = True
        model = shell.base_model.to(self.device)
        for number, tokens in enumerate(self.tokens_BT):
            targets = {"decoder_input_ids": self.targets_BT[number].to(self.device)} if self.targets_BT else {}
            model(input_ids=tokens.to(self.device), **targets, use_cache=False)
        stack = recorders[first : first + num_layers]
        if not self.targets_BT:
            seen: dict[torch.Size, int] = {}
            for number, tokens in enumerate(self.tokens_BT):
                alike = seen.setdefault(tokens.shape, number)
                for recorder in stack:
                    recorder.calls[number] = recorder.calls[alike]
        return stack[0].inputs_BTD, [recorder.calls for recorder in stack]


def walk_together(walks: Sequence[Walk]) -> Iterator[tuple[int, Step]]:
    """The steps of several walks through one checkpoint under one plan, layer by layer, each with its walk's place.

    A layer is read once, and each walk has a copy of its own, one after the other.
    """
    for layer in walks[0].layers():
        for place, walk in enumerate(walks):
            own = layer if walk is walks[-1] else walk.checkpoint.copy(layer)
            step = walk.begin(own)
            yield place, step
            walk.end(step)
            del own, step
        del layer


def _with(call: Arguments, handed: Mapping[int, Any]) -> Arguments:
    """The arguments with some of them replaced; place 0 is the hidden states, which `call` leaves out."""
    args, kwargs = call
    return tuple(handed.get(place, arg) for place, arg in enumerate(args, 1)), kwargs
