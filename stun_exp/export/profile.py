"""The retained experts alone, for a runtime that drops the others as it loads the unpruned model.

With them goes the ranking of all experts, if the method has one: a runtime may keep as many as it has room for.
"""

import time
from typing import TYPE_CHECKING, Any, ClassVar

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from stun_exp.checkpoint.architecture import Architecture
    from stun_exp.export.protocol import Pruned
    from stun_exp.moe.layers import MoELayer
    from stun_exp.moe.plan import Plan

RANKING = "expert_ranking.jsonl"
"""A line for each layer: `ranking`, all its experts, the first to keep first; their `scores`, if that is what orders
them; and the `fewest` of them for which the order is the method's choice."""


class ProfileExport(Component):
    """Proves that the unpruned model with the experts that the file names is the model that the plan makes of it.

    The file holds numbers of experts and no weight: zeros and training are not in it, and the result says so.
    """

    equal_layers: ClassVar[bool] = False
    keeps_checkpoint: ClassVar[bool] = False

    def check(self, source: "Architecture", ratio: float, equal: bool) -> None:
        """Any model will do."""

    def check_plan(self, source: "Architecture", plan: "Plan") -> None:
        merged = [layer.layer for layer in plan.layers if any(len(group) > 1 for group in layer.groups)]
        if merged:
            raise ValueError(
                f"export=profile: the plan merges experts (layer {merged[0]}, {len(merged)} layers in all), and a "
                "profile can only leave some out; pass export=hf_unequal, or an expert_pruner that keeps experts as "
                "they are"
            )

    def export(self, pruned: "Pruned") -> dict[str, Any]:
        from stun_exp.checkpoint.load import assemble
        from stun_exp.export.proof import compare_logits, fixed_batch, logits_BTV
        from stun_exp.utils.files import read_json_object
        from stun_exp.utils.json_files import write_json_lines

        began = time.monotonic()
        retained: dict[str, list[int]] = read_json_object(pruned.profile)["retained_experts"]

        def by_plan(layer: "MoELayer") -> None:
            plan = pruned.plan.of(layer.index)
            if plan is not None:
                layer.apply(plan)

        def by_profile(layer: "MoELayer") -> None:
            kept = retained.get(str(layer.index))
            if kept is not None:
                layer.regroup([[expert] for expert in kept])

        source = pruned.source
        batch = fixed_batch(source.config)
        planned_BTV = logits_BTV(assemble(source, pruned.device, edit=by_plan), batch)
        profiled_BTV = logits_BTV(assemble(source, pruned.device, edit=by_profile), batch)
        what = f"{pruned.profile}, applied to {source.path}"
        lines = _rankings(pruned.plan)
        ranking = pruned.profile.with_name(RANKING)
        if lines:
            write_json_lines(ranking, lines)
        else:
            ranking.unlink(missing_ok=True)  # of an earlier run here
        return {
            "export": "profile",
            "written": pruned.profile.name,
            "ranking": RANKING if lines else None,
            "num_experts": [len(kept) for kept in retained.values()],
            "loads_with": f"{source.path}, less the experts that the file does not name",
            **compare_logits(planned_BTV, profiled_BTV, source.dtype, what),
            "tokens": sum(map(len, batch["input_ids"])),
            "vllm": {
                "verified": False,
                "because": "a profile is no checkpoint: the runtime applies it to one",
            },
            "seconds": round(time.monotonic() - began, 1),
            "notes": [*_left_out(pruned), *([] if lines else [_NO_RANKING])],
        }


_NO_RANKING = (
    f"no {RANKING}: the expert pruner chooses a set of experts for the ratio that it is given, and has no order that "
    "holds at others"
)


def _rankings(plan: "Plan") -> list[dict[str, Any]]:
    """A line for each layer with experts; none if there is a layer whose experts are in no order."""
    lines = []
    for layer in plan.layers:
        if layer.ranking is None:
            return []
        found = {"ranking": layer.ranking.experts, "scores": layer.facts.get("scores"), "fewest": layer.ranking.fewest}
        lines.append({"layer": layer.layer, **found})
    return lines


def _left_out(pruned: "Pruned") -> list[str]:
    """A line for what else was done to the model, and is not in the profile."""
    done = {"the pruned weights": pruned.weights_pruned, "the training": pruned.recovered}
    missing = [what for what, was_done in done.items() if was_done]
    if not missing:
        return []
    return [
        f"the profile holds numbers of experts alone: {' and '.join(missing)} are in the checkpoint only (save=true)"
    ]
