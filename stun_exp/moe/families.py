"""The table of supported architectures: what differs between them, and nothing else."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class MoEFamily:
    """Where one architecture keeps its experts; paths are attribute names inside a decoder layer."""

    model_type: str
    num_experts_key: str
    """Key of the expert count in config.json."""
    block: str = "mlp"
    """The MoE block; a layer whose block has no experts is a dense layer."""
    router: str = "gate"
    """The router inside the block."""
    router_rows: tuple[str, ...] = ("weight",)
    """Router tensors with one row per expert: they are cut together with the experts."""
    gates: tuple[str, ...] = ()
    """Linears of a layer that gate, as a router does, and are therefore never pruned."""


FAMILIES = {
    family.model_type: family
    for family in (
        MoEFamily(model_type="mixtral", num_experts_key="num_local_experts"),
        MoEFamily(model_type="qwen2_moe", num_experts_key="num_experts", gates=("mlp.shared_expert_gate",)),
        MoEFamily(model_type="qwen3_moe", num_experts_key="num_experts"),
        MoEFamily(model_type="olmoe", num_experts_key="num_experts"),
    )
}


def family_of(model_type: str | None, source: Path) -> MoEFamily:
    """The family of the `model_type` that a config says; ValueError for an architecture that is not in the table."""
    family = FAMILIES.get(model_type or "")
    if family is None:
        raise ValueError(
            f"{source}: model_type={model_type!r} is not supported; known: {', '.join(sorted(FAMILIES))}; "
            "a new family is one entry in stun_exp/moe/families.py"
        )
    return family
