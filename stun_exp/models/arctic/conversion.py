"""How the published checkpoint's tensors become those of the model in memory, and back."""

from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter


def checkpoint_conversion() -> list[WeightConverter]:
    """Per-expert matrices on disk to the fused 3-D ones; every other tensor keeps its name.

    Published names of expert E: `block_sparse_moe.experts.E.w1` (gate) and `w3` (up), both (width, hidden size), and
    `w2` (down). A dense layer's `block_sparse_moe.mlp.w*` and the `residual_mlp.w*` are not fused.
    """
    return [
        WeightConverter(
            source_patterns=[".experts.*.w1.weight", ".experts.*.w3.weight"],
            target_patterns=".experts.gate_up_proj",
            operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
        ),
        WeightConverter(
            source_patterns=[".experts.*.w2.weight"],
            target_patterns=".experts.down_proj",
            operations=[MergeModulelist(dim=0)],
        ),
    ]
