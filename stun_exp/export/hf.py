"""A checkpoint for stock transformers, vLLM and SGLang: all layers keep equally many experts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from stun_exp.checkpoint.architecture import Architecture
    from stun_exp.export.protocol import Pruned
    from stun_exp.moe.layers import MoELayer
    from stun_exp.moe.plan import Plan

_WRONG_IN_STOCK = {"nllb-moe": "the experts of transformers 5.23 are not those that its router chose"}
_ELSE = "pass export=none, and load the checkpoint by stun_exp.load_pruned"


class HfExport(Component):
    """Proves that a process with transformers alone reads the checkpoint, and vLLM where it is named.

    The files stay as they are written. SGLang's expert parallelism wants a number of GPUs that divides the experts
    (`assert num_experts % moe_ep_size == 0`), which the result lists; vLLM deals out what remains.
    """

    equal_layers: ClassVar[bool] = True
    keeps_checkpoint: ClassVar[bool] = True
    vllm_python: str | None
    """The Python of an environment that has vLLM, which proves that it serves the checkpoint; null does without."""

    def check(self, source: "Architecture", ratio: float, equal: bool) -> None:
        if ratio and not equal:
            raise ValueError(
                "export=hf: this expert pruner leaves layers with different numbers of experts; pass "
                "expert_pruner.budget=per_layer where it has that, another expert_pruner, or export=hf_unequal"
            )
        if not equal and source.family.is_dense:
            raise ValueError(
                "export=hf: this structured pruner leaves layers of different widths; pass "
                "structured_pruner.budget=per_layer where it has that, or export=none"
            )
        check_stock(source, "export=hf")
        check_vllm(source, self.vllm_python, "export=hf")
        _check_ratio([layer for layer in source.outlines if layer.is_moe], ratio)

    def check_plan(self, source: "Architecture", plan: "Plan") -> None:
        _check_counts(source, {layer.layer: len(layer.groups) for layer in plan.layers})

    def export(self, pruned: "Pruned") -> dict[str, Any]:
        from stun_exp.checkpoint.checkpoint import Checkpoint
        from stun_exp.export.proof import prove

        written = Checkpoint(pruned.folder, None)
        counts = {layer.index: layer.num_experts for layer in written.outlines if layer.is_moe}
        _check_counts(written, counts)
        count = next(iter(counts.values()), None)
        return {
            "export": "hf",
            "written": pruned.folder.name,
            "num_experts": count,
            "expert_parallel_sizes": [] if count is None else expert_parallel_sizes(count),
            **prove(written, pruned.device, False, pruned.tokens, self.vllm_python),
            "notes": pruned.savings(),
        }


def check_experts(source: "Architecture", setting: str) -> None:
    """ValueError, naming the `setting`, for a dense model."""
    if source.family.is_dense:
        raise ValueError(
            f"{setting}: {source.family.model_type} is dense, and this is about numbers of experts; pass export=hf, "
            "and structured_pruner.budget=per_layer where parts of its layers go"
        )


def check_stock(source: "Architecture", setting: str) -> None:
    """ValueError, naming the `setting`, if stock transformers cannot run a model of this architecture."""
    import transformers

    stock = type(source.skeleton).__name__
    wrong = _WRONG_IN_STOCK.get(source.family.model_type)
    if not hasattr(transformers, stock):
        raise ValueError(f"{setting}: transformers {transformers.__version__} has no {stock}; {_ELSE}")
    if wrong:
        raise ValueError(f"{setting}: {source.family.model_type}: {wrong}; {_ELSE}")
    if not source.raw.get("architectures"):
        raise ValueError(
            f"{setting}: {source.path / 'config.json'} has no architectures, by which vLLM and SGLang choose the "
            f'model\'s class; add "architectures": ["{stock}"]'
        )


def expert_parallel_sizes(count: int) -> list[int]:
    """The numbers of GPUs over which SGLang can deal out so many experts."""
    return [gpus for gpus in range(1, count + 1) if count % gpus == 0]


def check_vllm(source: "Architecture", python: str | None, setting: str) -> None:
    """ValueError, naming the `setting`, if the vLLM of a Python, where one is named, cannot serve the model."""
    if not python:
        return
    from stun_exp.serving.vllm_process import find_vllm

    if why := find_vllm(python, "export.vllm_python").obstacle(source.raw["architectures"]):
        raise ValueError(f"{setting}: {why}; pass export.vllm_python=null for a checkpoint that it need not serve")


def _check_ratio(layers: "Sequence[MoELayer]", ratio: float) -> None:
    """ValueError if the layers cannot share equally what `ratio` leaves.

    Group-limited routers lose whole rounds of groups, so that what they are left with is known with the plan only.
    """
    if not layers:
        return
    total = sum(layer.num_experts for layer in layers)
    left = total - round(ratio * total)
    if left % len(layers) and all(layer.num_groups == 1 for layer in layers):
        each = min(round(left / len(layers)), *(layer.num_experts for layer in layers))
        raise ValueError(
            f"export=hf: expert_pruner.ratio={ratio:g} leaves {left} experts, which {len(layers)} layers cannot share "
            f"equally; pass expert_pruner.ratio={1 - each * len(layers) / total:.4g}, or export=hf_unequal"
        )


def _check_counts(architecture: "Architecture", counts: dict[int, int]) -> None:
    """ValueError if layers keep different numbers of experts, or one fewer than its router can work with."""
    if not counts:
        return
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[fewest] != counts[most]:
        raise ValueError(
            f"export=hf: layer {fewest} keeps {counts[fewest]} experts and layer {most} keeps {counts[most]}; stock "
            "transformers, vLLM and SGLang read equal layers alone; pass export=hf_unequal, or keep equally many in "
            "each (expert_pruner.budget=per_layer for STUN)"
        )
    for index, count in counts.items():
        _check_routing(architecture.outline(index), count)


def _check_routing(layer: "MoELayer", count: int) -> None:
    """ValueError if the layer's router cannot work with `count` experts."""
    if count < layer.min_experts:
        raise ValueError(
            f"export=hf: layer {layer.index} keeps {count} experts, and its router needs {layer.min_experts} "
            f"(top_k={layer.top_k}); lower expert_pruner.ratio"
        )
    if count % layer.num_groups:
        raise ValueError(
            f"export=hf: layer {layer.index} keeps {count} experts, and its router chooses among {layer.num_groups} "
            "equal groups; choose an expert_pruner.ratio that leaves a multiple"
        )
