"""One decoder layer seen as a mixture of experts, and the only surgery done to it.

Shapes: E experts, O rows (outputs) and C columns (inputs) of one matrix, F expert width, D hidden size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stun_exp.moe import surgery
from stun_exp.moe.families import MoEFamily
from stun_exp.moe.plan import LayerPlan

PIECE = 2**18
"""Parameters of each expert that are looked at together."""

Kind = Literal["attention", "mlp", "expert"]


@dataclass(frozen=True)
class Matrix:
    """One prunable matrix: a view into the layer's own storage, so writing to `weight_OC` changes the layer."""

    name: str
    weight_OC: Tensor
    feed: str
    """What flows into it: matrices with the same feed see the same inputs, and share one statistic."""
    kind: Kind
    expert: int | None = None
    """The routed expert that it belongs to."""


class MoELayer:
    """A view of one decoder layer; owns nothing."""

    def __init__(self, module: nn.Module, index: int, family: MoEFamily):
        self.module = module
        self.index = index
        self.family = family
        self.block_path = _first_of(module, family.blocks)
        self.block: Any = module.get_submodule(self.block_path)
        self.is_moe = hasattr(self.block, "experts")

    def check(self) -> None:
        """ValueError unless every tensor of the experts is one that pruning visits, merging merges and cutting cuts."""
        if not self.is_moe:
            return
        matrices = ("gate_up_proj" if getattr(self.experts, "has_gate", True) else "up_proj", "down_proj")
        known = {*matrices, *(f"{name}_bias" for name in matrices)}
        found = {name for name, _ in self.experts.named_parameters()}
        if not found >= set(matrices) or not found <= known:
            raise ValueError(
                f"layer {self.index}: the experts of {self.family.model_type} hold {', '.join(sorted(found)[:4])}, and "
                f"only fused ones ({', '.join(matrices)}) can be pruned; see stun_exp/models/fused.py"
            )
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(
                f"layer {self.index}: the router chooses {self.top_k} experts a token (top_k) of {self.num_experts}; "
                "config.json is of another model, or damaged"
            )
        if self.num_experts % self.num_groups:
            raise ValueError(
                f"layer {self.index}: {self.num_experts} experts do not make {self.num_groups} equal groups, among "
                "which the router chooses; config.json is of another model, or damaged"
            )

    @property
    def router(self) -> Any:
        return getattr(self.block, self.family.router)

    @property
    def router_path(self) -> str:
        return f"{self.block_path}.{self.family.router}"

    @property
    def experts(self) -> Any:
        return self.block.experts

    @property
    def num_experts(self) -> int:
        """Routed experts in this layer; 0 for a dense layer. Shared experts do not count."""
        return int(self.experts.down_proj.shape[0]) if self.is_moe else 0

    @property
    def top_k(self) -> int:
        return int(self.router.top_k)

    @property
    def renormalizes(self) -> bool:
        """Whether the chosen experts' gates are scaled to sum 1, which not every family has a setting for."""
        return bool(getattr(self.router, "norm_topk_prob", self.family.renormalizes))

    @property
    def num_groups(self) -> int:
        """Equal groups of neighboring experts among which a group-limited router chooses first; 1 without groups."""
        if getattr(self.router, "topk_method", None) == "greedy":
            return 1  # DeepSeek-V2-Lite: the setting is there, and without effect
        return int(getattr(self.router, "num_group", None) or 1)

    @property
    def min_experts(self) -> int:
        """The fewest experts with which the router can still choose `top_k`."""
        if self.num_groups == 1:
            return self.top_k
        per_group = max(self.family.group_best, -(-self.top_k // int(self.router.topk_group)))
        return per_group * self.num_groups

    def router_rows_ED(self) -> Tensor:
        return self.router_tensors()[self.family.router_rows[0]].detach()

    def expert_weights(self, experts: Sequence[int]) -> Iterator[Tensor]:
        """The named experts' flattened parameters in fp32, piece by piece: (len(experts), some of the parameters)."""
        index = torch.tensor(experts, device=self.experts.down_proj.device)
        for tensor in self.expert_tensors().values():
            for piece in torch.split(tensor.detach().flatten(1), PIECE, dim=1):
                yield piece[index].float()

    def parameters_per_expert(self) -> int:
        """Everything that goes when an expert goes: its matrices, biases and router rows."""
        if not self.is_moe:
            return 0
        tensors = (*self.expert_tensors().values(), *self.router_tensors().values())
        return sum(tensor.numel() // self.num_experts for tensor in tensors)

    def matrices(self) -> Iterator[Matrix]:
        """Every weight matrix that pruning may touch, in a fixed order; never the router, norms, biases or gates."""
        mlps = tuple(f"{path}." for path in (self.block_path, *self.family.mlps))
        for name, linear in self.linears():
            kind: Kind = "mlp" if f"{name}.".startswith(mlps) else "attention"
            yield Matrix(name, linear.weight.detach(), name, kind)
        if not self.is_moe:
            return
        prefix = f"{self.block_path}.experts"
        fused = self.experts.gate_up_proj if self.experts.has_gate else self.experts.up_proj
        for expert in range(self.num_experts):
            up_OC = _out_by_in(self.experts, fused.detach()[expert])
            for half, weight_FD in _halves(self.experts, up_OC):
                yield Matrix(f"{prefix}.{expert}.{half}", weight_FD, f"{prefix}.{expert}.in", "expert", expert)
            down_DF = _out_by_in(self.experts, self.experts.down_proj.detach()[expert])
            yield Matrix(f"{prefix}.{expert}.down_proj", down_DF, f"{prefix}.{expert}.hidden", "expert", expert)

    def linears(self) -> Iterator[tuple[str, nn.Linear]]:
        """The plain linears that pruning may touch: attention, dense and shared feed-forward."""
        for name, child in self.module.named_modules():
            gate = name in self.family.gates or f"{name}.".startswith(f"{self.router_path}.")
            if isinstance(child, nn.Linear) and not gate:
                yield name, child

    def apply(self, plan: LayerPlan) -> None:
        """Does to this layer what its plan says; ValueError if the router could not work with what is left."""
        self.regroup(plan.groups, plan.weights, plan.kept if plan.aligned else None)

    def regroup(
        self,
        groups: Sequence[Sequence[int]],
        weights: Sequence[Sequence[float]] | None = None,
        align_to: Sequence[int] | None = None,
    ) -> None:
        """Makes expert i the mean of `groups[i]`, router row included; an expert in no group is gone.

        Groups of one copy bit for bit; means are taken in fp32, with `weights[i]` as shares if given. With `align_to`
        the hidden units of every member are first matched to those of expert `align_to[i]`. ValueError if fewer groups
        remain than the router must choose (`top_k`), or if a group-limited router's groups become unequal.
        """
        self.check_groups(groups)
        if groups != [[expert] for expert in range(self.num_experts)]:
            surgery.regroup_(self, groups, weights, align_to)

    def resize(self, num_experts: int) -> None:
        """Makes room for `num_experts` experts of the same shape, without weights: for a layer that is read later."""
        surgery.resize_(self, num_experts)

    @property
    def can_bar(self) -> bool:
        """Whether the router can keep an expert from ever being chosen."""
        return self.family.barring in self.router_tensors()

    def pad(self, num_experts: int) -> None:
        """Adds experts of zeros that the router never chooses, equally many at the end of each of its groups."""
        assert self.can_bar
        assert num_experts % self.num_groups == 0
        if num_experts != self.num_experts:
            surgery.pad_(self, num_experts)

    def check_groups(self, groups: Sequence[Sequence[int]]) -> None:
        """ValueError unless the router can work with an expert for each of the groups."""
        if len(groups) < self.min_experts:
            raise ValueError(
                f"layer {self.index}: {len(groups)} of {self.num_experts} experts would remain; "
                f"the router needs {self.min_experts} (top_k={self.top_k}); remove fewer experts"
            )
        size = self.num_experts // self.num_groups
        left = [sum(group[0] // size == number for group in groups) for number in range(self.num_groups)]
        if len(set(left)) > 1:
            raise ValueError(
                f"layer {self.index}: the router chooses among {self.num_groups} groups of {size} experts, and the "
                f"plan leaves {left} of them; keep equally many in each"
            )

    def expert_tensors(self) -> dict[str, nn.Parameter]:
        """The experts' fused tensors, by name."""
        return dict(self.experts.named_parameters(recurse=False))

    def router_tensors(self) -> dict[str, Tensor]:
        """What the router has one entry of for each expert; a bias that a family may lack is left out."""
        found = dict((*self.router.named_parameters(), *self.router.named_buffers()))
        return {name: found[name] for name in self.family.router_rows if name in found}


def layer_paths(model: nn.Module, family: MoEFamily) -> list[list[str]]:
    """The names of a model's layers, stack by stack, in the order in which they run."""
    stacks = []
    for stack in family.stacks:
        layers = model.get_submodule(stack)
        assert isinstance(layers, nn.ModuleList)
        stacks.append([f"{stack}.{number}" for number in range(len(layers))])
    return stacks


def layers_of(model: nn.Module, family: MoEFamily) -> list[MoELayer]:
    """A model's layers, numbered through from the first of its first stack."""
    paths = (path for stack in layer_paths(model, family) for path in stack)
    return [MoELayer(model.get_submodule(path), index, family) for index, path in enumerate(paths)]


def _first_of(module: nn.Module, paths: Sequence[str]) -> str:
    """The first of `paths` that leads to a part of the module."""
    for path in paths:
        try:
            module.get_submodule(path)
        except AttributeError:
            continue
        return path
    raise AssertionError(f"none of {paths} in {type(module).__name__}")


def _out_by_in(experts: Any, weight: Tensor) -> Tensor:
    return weight.mT if experts.is_transposed else weight


def _halves(experts: Any, weight_OC: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The gate and up halves of a fused projection, as views."""
    if not experts.has_gate:
        yield "up_proj", weight_OC
    elif experts.is_concatenated:
        gate_FC, up_FC = weight_OC.chunk(2, dim=0)
        yield "gate_proj", gate_FC
        yield "up_proj", up_FC
    else:
        yield "gate_proj", weight_OC[0::2]
        yield "up_proj", weight_OC[1::2]
