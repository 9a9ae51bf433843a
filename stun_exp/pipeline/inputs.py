"""What a run works on, once it is open."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stun_exp.checkpoint.nf4 import as_quantized
from stun_exp.state.device import circumstances
from stun_exp.streaming.walk import Walk, as_it_is

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.calibration.protocol import CalibrationTokens
    from stun_exp.checkpoint.checkpoint import Checkpoint
    from stun_exp.evaluation.benchmarks import PreparedBenchmarks
    from stun_exp.moe.plan import Plan
    from stun_exp.moe.skip import GateRatios
    from stun_exp.pipeline.context import RunContext
    from stun_exp.pipeline.parts import Structure
    from stun_exp.pipeline.source_zeros import LayerZeros
    from stun_exp.pipeline.weight_stage import WeightStage


@dataclass
class Inputs:
    """Checkpoint, text and benchmarks of a run, and what was found out about them."""

    checkpoint: "Checkpoint"
    identity: dict[str, str]
    """The sha256 of every file of the checkpoint."""
    tokenizer: Any
    tokens: "CalibrationTokens"
    training_NT: "Tensor"
    """N sequences of T tokens for a recovery."""
    stage: "WeightStage"
    benchmarks: "PreparedBenchmarks"
    gates: "dict[int, GateRatios]"
    """What to gather in each layer that is to skip experts."""
    zeros: "list[LayerZeros]"
    source_zeros: float
    """Share of the weights in scope that is zero before anything is pruned."""
    unpruned: "Checkpoint"
    """The model as it was; `checkpoint` has lost what the structured pruner takes."""
    unpruned_identity: dict[str, str]
    structure: "Structure | None" = None
    """What the structured pruner took."""

    def walk(self, run: "RunContext", what: str, plan: "Plan | None" = None, runs: bool = True, **more: Any) -> Walk:
        """A walk through the checkpoint on the calibration tokens, as the plan leaves it; `what` is for the screen."""
        precision = as_quantized if run.in_nf4 else as_it_is
        spill = run.settings.stream.spill(run.out)
        return Walk(
            self.checkpoint,
            self.tokens.batches_BT,
            run.device,
            what,
            plan,
            runs,
            self.tokens.targets_BT,
            precision,
            spill,
            **more,
        )

    def calibrated_on(self, run: "RunContext") -> dict[str, Any]:
        """All that statistics of the model depend on, besides what is gathered, and by which code."""
        return {
            "checkpoint": self.identity,
            "dtype": str(self.checkpoint.dtype),
            "nf4": run.in_nf4,
            "tokens": self.tokens.sha256,
            "batches": [list(batch.shape) for batch in self.tokens.batches_BT],
            **circumstances(run.device),
        }
