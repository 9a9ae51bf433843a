"""MoE-Pruner's recovery: train on text, and each expert on what it gave before (arXiv 2410.12013)."""

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from stun_exp.moe.distill import ExpertLoss
    from stun_exp.moe.layers import MoELayer
    from stun_exp.recovery.protocol import PrunedModel
    from stun_exp.recovery.training import History, Zeros


class ExpertDistillation(Component):
    """L = L_CE + lambda * sum over layers and experts of MSE(E_teacher(x), E_student(x)); pruned weights stay zero.

    All parameters are trained, in fp32, by AdamW without weight decay, under a cosine without warm-up. The teacher of
    an expert is the expert of the full model that it was, before its weights were pruned; of merged experts, the one
    that represents them, since their mean is no expert of the full model. x is what the pruned model routes to the
    expert, for both: the paper does not say, and so no second model is run. Shared experts have no teacher. The layers
    of a dense model are taught as wholes, each by the layer that it was. Memory: 16 bytes a parameter, and the
    teachers, or those of one layer, in the full model's own precision.
    """

    epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    """Of the first step."""
    num_sequences: int = Field(ge=1)
    """Of the calibration's source and length: those that come after the calibration's own."""
    batch_size: int = Field(ge=1)
    """Sequences a step; the paper does not give it."""
    expert_weight: Literal["balanced"] | Annotated[float, Field(ge=0)]
    """lambda; balanced is L_CE over the sum, both of the first batch, and held from then on."""
    max_grad_norm: float = Field(gt=0)
    """Norm to which larger gradients are scaled down; not given either."""
    teacher: Literal["memory", "stream"]
    """Whether the full model's experts are held, or read a layer at a time from its checkpoint whenever they are asked;
    twice a step with gradient checkpointing."""
    gradient_checkpointing: bool
    """Whether layers are run again in the backward pass instead of remembered: less memory, a third more time."""
    save_every: int = Field(ge=1)
    """Steps from one state to the next, from which a run that was killed goes on, if given the same folder."""

    def recover(self, pruned: "PrunedModel") -> dict[str, Any]:
        import torch

        from stun_exp.moe.distill import distil_experts
        from stun_exp.recovery.training import Saved, batch_BT, course, forget_activations, zeros_of
        from stun_exp.utils.progress import track

        saved = Saved(pruned.state, [self.model_dump(exclude={"save_every", "teacher"}), pruned.seed, pruned.digest()])
        model, layers = pruned.load()
        moe = [layer.index for layer in layers if layer.is_moe]
        taught = moe or [layer.index for layer in layers]
        teachers: Mapping[int, nn.Module] = Streamed(taught, pruned.teacher)
        if self.teacher == "memory":
            teachers = dict(teachers)
        if self.expert_weight == "balanced":
            _check_that_something_was_lost(layers, teachers)
        zeros = zeros_of(layers)
        if self.gradient_checkpointing:
            forget_activations(model, layers)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.learning_rate, weight_decay=0.0, fused=True)
        history = saved.restore(model, optimizer, pruned.warn)
        began = time.monotonic() - history.seconds
        steps = self.epochs * -(-len(pruned.sequences_NT) // self.batch_size)
        with distil_experts(layers, teachers) as expert_loss:
            for step in track(range(history.step, steps), "recovering"):
                ids_BT = batch_BT(pruned.sequences_NT, self.batch_size, step, pruned.seed).to(model.device)
                loss = self._loss(model, ids_BT, expert_loss, history)
                self._descend_(loss, optimizer, zeros, step / steps)
                history.seconds = time.monotonic() - began
                if history.step % self.save_every == 0:
                    saved.save(model, optimizer, history)
        del teachers, optimizer  # their memory is wanted for a second copy of the weights
        pruned.save(model)
        saved.remove()
        return {
            "steps": steps,
            "sequences": len(pruned.sequences_NT),
            "seconds": history.seconds,
            "weights_held_at_zero": sum(int(where.sum()) for _, where in zeros),
            "expert_weight": history.expert_weight,
            "language_loss": course(history.language),
            "expert_loss": course(history.expert),
        }

    def _loss(self, model: Any, ids_BT: "Tensor", expert_loss: "ExpertLoss", history: "History") -> "Tensor":
        """The loss of one batch, its two parts noted in `history`; ValueError if it is not finite."""
        from stun_exp.recovery.training import language_loss

        expert_loss.begin()
        language = language_loss(model(input_ids=ids_BT, use_cache=False).logits, ids_BT)
        expert = expert_loss.total()
        if history.expert_weight is None:
            balanced = self.expert_weight == "balanced"
            history.expert_weight = language.item() / expert.item() if balanced else float(self.expert_weight)
        loss = language + history.expert_weight * expert
        if not loss.isfinite():
            raise ValueError(
                f"recovery.learning_rate={self.learning_rate:g}: after {history.step} steps the loss is NaN or "
                "infinite; lower recovery.learning_rate"
            )
        history.language.append(language.item())
        history.expert.append(expert.item())
        return loss

    def _descend_(self, loss: "Tensor", optimizer: "Optimizer", zeros: "Zeros", done: float) -> None:
        """One step down the loss; `done` is the share of the training that lies behind it."""
        import torch

        from stun_exp.recovery.training import cosine, hold

        (group,) = optimizer.param_groups
        group["lr"] = self.learning_rate * cosine(done)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        hold(zeros)
        torch.nn.utils.clip_grad_norm_(group["params"], self.max_grad_norm)
        optimizer.step()


class Streamed(Mapping[int, "nn.Module"]):
    """Each layer's teacher, read whenever it is asked for."""

    def __init__(self, layers: "Sequence[int]", read: "Callable[[int], nn.Module]"):
        self.layers = layers
        self.read = read

    def __getitem__(self, layer: int) -> "nn.Module":
        return self.read(layer)

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def _check_that_something_was_lost(layers: "Sequence[MoELayer]", teachers: Mapping[int, "nn.Module"]) -> None:
    """ValueError if everything is its own teacher: there is then no scale on which to balance the losses."""
    lost = any(
        bool((own != given).any())
        for layer in layers
        if layer.index in teachers
        for own, given in zip(
            (layer.experts if layer.is_moe else layer.module).parameters(),
            teachers[layer.index].parameters(),
            strict=True,
        )
    )
    if not lost:
        raise ValueError(
            "recovery.expert_weight=balanced: what is left is as it was in the full model, so its distance from that "
            "is 0 at the start and L_CE over it is no number; pass recovery.expert_weight=0.0 to train on text alone, "
            "or recovery=none"
        )
