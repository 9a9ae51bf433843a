"""Walk a checkpoint from its last layer to its first, with the gradients of the text's loss, a layer at a time.

Shapes: B sequences of a batch, T tokens, D hidden size, V tokens of the vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_map_only

from stun_exp.checkpoint.scratch import IN_MEMORY, Spill
from stun_exp.moe.layers import MoELayer
from stun_exp.streaming.recorder import Arguments, Recorder
from stun_exp.streaming.walk import Walk


class BackwardStep:
    """One decoder layer on the device, with the hidden states that reach it and the gradients at its outputs."""

    def __init__(
        self,
        layer: MoELayer,
        hidden_BTD: Sequence[Tensor],
        arguments: Sequence[Arguments],
        gradients_BTD: Sequence[Tensor],
        spill: Spill = IN_MEMORY,
    ):
        self.layer = layer
        self.hidden_BTD = hidden_BTD
        self.gradients_BTD = gradients_BTD
        self.inputs_gradients_BTD: list[Tensor] = []
        """At the layer's inputs, once it has been run."""
        self.spill = spill
        self._arguments = arguments

    @torch.enable_grad()
    def backward(self) -> None:
        """Runs all batches forwards again, and their gradients back."""
        device = next(self.layer.module.parameters()).device
        self.inputs_gradients_BTD = []
        for hidden, call, gradient in zip(self.hidden_BTD, self._arguments, self.gradients_BTD, strict=True):
            args, kwargs = tree_map_only(Tensor, torch.clone, call)  # made in inference mode: autograd takes copies
            leaf = hidden.to(device).clone().requires_grad_()
            output = self.layer.module(leaf, *args, **kwargs)
            output = output[0] if isinstance(output, tuple) else output
            (own,) = torch.autograd.grad(output, leaf, gradient.to(device))
            self.spill.keep(self.inputs_gradients_BTD, own)


class BackwardWalk:
    """The layers of a walk from the last to the first, each read once more, yielded, run backwards and forgotten.

    First the walk itself is gone through, and the inputs of all layers are kept: in memory as far as its spill allows,
    else in files. The loss is that of the text's own next tokens, summed over all of them; no weight has a gradient. A
    layer that the caller has not run is run when the walk goes on.
    """

    def __init__(self, walk: Walk):
        assert not walk.targets_BT, "an encoder-decoder has two stacks"
        self.walk = walk
        self.loss = 0.0
        """Per token, in nats; known at the first step."""

    @property
    def forward_passes(self) -> float:
        """Those of the walk, and once more for each layer run again, and for its gradients."""
        return 3 * self.walk.forward_passes

    def __iter__(self) -> Iterator[BackwardStep]:
        walk, inputs_BTD, arguments = self.walk, list[Tensor](), list[list[Arguments]]()
        outputs_BTD: Sequence[Tensor] = ()
        for step in walk:
            arguments.append(step.arguments)
            for hidden in step.hidden_BTD:
                walk.spill.keep(inputs_BTD, hidden)
            step.forward()
            outputs_BTD = step.outputs_BTD or []
        del step
        gradients_BTD, batches = self._at_last_layer(outputs_BTD), len(outputs_BTD)
        del outputs_BTD
        for layer in walk.layers(backwards=True):
            layer.module.to(walk.device)
            own_BTD, inputs_BTD = inputs_BTD[-batches:], inputs_BTD[:-batches]
            back = BackwardStep(layer, own_BTD, arguments.pop(), gradients_BTD, walk.spill)
            yield back
            if not back.inputs_gradients_BTD:
                back.backward()
            gradients_BTD = back.inputs_gradients_BTD
            del layer, back, own_BTD

    @torch.enable_grad()
    def _at_last_layer(self, outputs_BTD: Sequence[Tensor]) -> list[Tensor]:
        """The gradients at the last layer's outputs; what follows it is run as the model itself runs it."""
        walk = self.walk
        shell = walk.checkpoint.read_shell().requires_grad_(False)
        for path in walk.checkpoint.paths:
            last = Recorder(shell.get_submodule(path), 1, (), walk.spill)
            shell.set_submodule(path, last)
        shell.to(walk.device)
        gradients_BTD: list[Tensor] = []
        total, count = 0.0, 0
        for tokens_BT, output_BTD in zip(walk.tokens_BT, outputs_BTD, strict=True):
            leaf = output_BTD.to(walk.device).clone().requires_grad_()
            last.outputs_BTD, last.calls = [leaf], []
            targets_BT = tokens_BT.to(walk.device)
            loss = _loss(shell(input_ids=targets_BT, use_cache=False).logits, targets_BT)
            (gradient_BTD,) = torch.autograd.grad(loss, leaf)
            walk.spill.keep(gradients_BTD, gradient_BTD)
            total, count = total + loss.item(), count + targets_BT[:, 1:].numel()
        self.loss = total / count
        return gradients_BTD


def _loss(logits_BTV: Tensor, tokens_BT: Tensor) -> Any:
    """Cross entropy of each next token, summed; in 32 bits at least."""
    logits_BTV = logits_BTV[:, :-1].to(torch.promote_types(logits_BTV.dtype, torch.float32))
    return cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="sum")
