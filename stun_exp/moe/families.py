"""The table of supported architectures, with experts and without: what differs between them, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Coupled:
    """Linears of a dense layer of which parts can only go together, by their paths in the layer.

    A hidden unit is a row of each of `ups`, in each of the halves that one may hold, and a column of `down`. A group of
    heads is what shares a head of keys and values: its rows of `query`, `key` and `value`, and its columns of `out`;
    without these four, attention is left whole.
    """

    ups: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    heads: tuple[str, str, str, str] | None = None
    width_key: str = "intermediate_size"
    """Key of the number of hidden units in config.json."""
    biases: Mapping[str, str] = field(default_factory=dict)
    """Key in config.json that gives a bias to `down` or to the heads' output, by that linear's path."""


@dataclass(frozen=True, kw_only=True)
class MoEFamily:
    """Where one architecture keeps its weights; paths are attribute names inside the model or one of its layers."""

    model_type: str
    num_experts_key: str | None = None
    """Key of the expert count in config.json; a dot leads into a part of the config. None: a dense architecture."""
    stacks: tuple[str, ...] = ("model.layers",)
    """The lists of layers, in the order in which they run: one, or an encoder's and a decoder's."""
    blocks: tuple[str, ...] = ("mlp",)
    """The feed-forward block of a layer, the first of these that it has; without experts the layer is a dense one. The
    layer itself, "", where its feed-forward has no module of its own."""
    router: str = "gate"
    """The router inside the block."""
    router_rows: tuple[str, ...] = ("weight",)
    """Router tensors with an entry per expert, the projection first: they are cut together with the experts."""
    barring: str | None = None
    """The router tensor, if there is one, whose lowest value keeps an expert from ever being chosen: it is added to
    what is compared, and the other experts' scores and gates do not depend on that expert."""
    gates: tuple[str, ...] = ()
    """Linears of a layer that gate, as a router does, or whose inputs cannot be seen: they are never pruned."""
    mlps: tuple[str, ...] = ()
    """Feed-forward modules of a layer beside the block; every other linear belongs to attention."""
    renormalizes: bool = True
    """Whether the chosen experts' gates are scaled to sum 1, if the router has no setting for it."""
    group_best: int = 2
    """How many of a group's experts decide its rank, where the router chooses among groups first."""
    hands_on: Mapping[int, int] = field(default_factory=dict)
    """Outputs of a layer besides the hidden states that the next takes: their place in the one's outputs and in the
    other's arguments."""
    coupled: Coupled | None = None
    """What a dense layer can lose besides single weights."""

    @property
    def is_dense(self) -> bool:
        """Whether no model of this architecture has experts."""
        return self.num_experts_key is None


_HEADS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_ATTENTION_BIAS = {"self_attn.o_proj": "attention_bias"}
_CORRECTION = "e_score_correction_bias"
_BIASED = ("weight", _CORRECTION)
_SHARED_GATE = ("mlp.shared_expert_gate",)
_SEQ2SEQ_ROWS = ("classifier.weight", "classifier.bias")

FAMILIES = {
    family.model_type: family
    for family in (
        MoEFamily(
            model_type="arctic",
            num_experts_key="num_local_experts",
            blocks=("block_sparse_moe",),
            mlps=("residual_mlp",),
        ),
        MoEFamily(
            model_type="dbrx",
            num_experts_key="ffn_config.moe_num_experts",
            stacks=("transformer.blocks",),
            blocks=("ffn",),
            router="router",
            router_rows=("layer.weight",),
        ),
        MoEFamily(model_type="deepseek_v2", num_experts_key="n_routed_experts", renormalizes=False, group_best=1),
        MoEFamily(
            model_type="deepseek_v3", num_experts_key="n_routed_experts", router_rows=_BIASED, barring=_CORRECTION
        ),
        MoEFamily(model_type="dots1", num_experts_key="n_routed_experts", router_rows=_BIASED, barring=_CORRECTION),
        MoEFamily(
            model_type="ernie4_5_moe",
            num_experts_key="moe_num_experts",
            # Not barring: the correction is added to a softmax over all experts, which one more would change.
            router_rows=("weight", "moe_statics.e_score_correction_bias"),
        ),
        MoEFamily(model_type="flex_olmo", num_experts_key="num_experts"),
        MoEFamily(model_type="glm4_moe", num_experts_key="n_routed_experts", router_rows=_BIASED, barring=_CORRECTION),
        MoEFamily(
            model_type="gpt_oss",
            num_experts_key="num_local_experts",
            router="router",
            router_rows=("weight", "bias"),
            barring="bias",
        ),
        MoEFamily(
            model_type="granitemoe", num_experts_key="num_local_experts", blocks=("block_sparse_moe",), router="router"
        ),
        MoEFamily(model_type="hunyuan_v1_moe", num_experts_key="num_experts", router_rows=("wg.weight",)),
        MoEFamily(
            model_type="jamba",
            num_experts_key="num_experts",
            blocks=("feed_forward",),
            router="router",
            gates=("mamba.dt_proj",),  # the step size of the recurrence; not called, its weight is used by itself
            renormalizes=False,
        ),
        MoEFamily(
            model_type="llama4_text",
            num_experts_key="num_local_experts",
            blocks=("feed_forward",),
            router="router",
            renormalizes=False,
        ),
        MoEFamily(model_type="minimax", num_experts_key="num_local_experts"),
        MoEFamily(model_type="mixtral", num_experts_key="num_local_experts"),
        MoEFamily(
            model_type="nllb-moe",
            num_experts_key="num_experts",
            stacks=("model.encoder.layers", "model.decoder.layers"),
            blocks=("ffn",),
            router="router",
            router_rows=_SEQ2SEQ_ROWS,
        ),
        MoEFamily(model_type="olmoe", num_experts_key="num_experts"),
        MoEFamily(model_type="phimoe", num_experts_key="num_local_experts", router="router", renormalizes=False),
        MoEFamily(model_type="qwen2_moe", num_experts_key="num_experts", gates=_SHARED_GATE),
        MoEFamily(model_type="qwen3_moe", num_experts_key="num_experts"),
        MoEFamily(model_type="qwen3_next", num_experts_key="num_experts", gates=_SHARED_GATE),
        MoEFamily(
            model_type="switch_transformers",
            num_experts_key="num_experts",
            stacks=("encoder.block", "decoder.block"),
            blocks=("layer.2.mlp", "layer.1.mlp"),
            router="router",
            router_rows=_SEQ2SEQ_ROWS,
            barring="classifier.bias",
            renormalizes=False,
            # Relative position biases: the first layer of a stack has the weights, the others are handed the result.
            hands_on={1: 2, 2: 5},
        ),
        # Dense.
        MoEFamily(model_type="gemma2", coupled=Coupled(heads=_HEADS, biases=_ATTENTION_BIAS)),
        MoEFamily(model_type="gemma3_text", coupled=Coupled(heads=_HEADS, biases=_ATTENTION_BIAS)),
        # Heads of GPT-NeoX and OPT have a size that follows from their number, and OLMo 2 normalizes over all of them.
        MoEFamily(
            model_type="gpt_neox",
            stacks=("gpt_neox.layers",),
            coupled=Coupled(ups=("mlp.dense_h_to_4h",), down="mlp.dense_4h_to_h"),
        ),
        MoEFamily(
            model_type="llama",
            coupled=Coupled(heads=_HEADS, biases={**_ATTENTION_BIAS, "mlp.down_proj": "mlp_bias"}),
        ),
        MoEFamily(model_type="mistral", coupled=Coupled(heads=_HEADS)),
        MoEFamily(model_type="olmo2", coupled=Coupled()),
        MoEFamily(
            model_type="opt",
            stacks=("model.decoder.layers",),
            blocks=("",),
            mlps=("fc1", "fc2"),
            coupled=Coupled(ups=("fc1",), down="fc2", width_key="ffn_dim"),
        ),
        MoEFamily(model_type="phi3", coupled=Coupled(ups=("mlp.gate_up_proj",))),
        MoEFamily(model_type="qwen2", coupled=Coupled(heads=_HEADS)),
        MoEFamily(model_type="qwen3", coupled=Coupled(heads=_HEADS, biases=_ATTENTION_BIAS)),
        MoEFamily(
            model_type="smollm3",
            coupled=Coupled(heads=_HEADS, biases={**_ATTENTION_BIAS, "mlp.down_proj": "mlp_bias"}),
        ),
    )
}
DENSE = tuple(family.model_type for family in FAMILIES.values() if family.is_dense)


def family_of(model_type: object, source: Path) -> MoEFamily:
    """The family of the `model_type` that a config says; ValueError for an architecture that is not in the table."""
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise ValueError(
            f"{source}: model_type={model_type!r} is not supported; known: {', '.join(sorted(FAMILIES))}; "
            "a new family is one entry in stun_exp/moe/families.py"
        )
    return family
