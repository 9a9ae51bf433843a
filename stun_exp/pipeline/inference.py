"""The stage that measures what the pruned model takes in use, and how fast it is, beside the unpruned one."""

from dataclasses import asdict
from typing import Any

from stun_exp.inference.protocol import Compared
from stun_exp.inference.records import Comparison
from stun_exp.pipeline.context import RunContext, Stage
from stun_exp.pipeline.inputs import Inputs
from stun_exp.pipeline.verify import WrittenCheckpoint

INFERENCE: Stage[Comparison | None] = Stage("inference")


def measure_inference(run: RunContext, inputs: Inputs, written: WrittenCheckpoint) -> Comparison | None:
    """What was measured of both models on the calibration text; None if nothing is."""
    both = {"unpruned": inputs.unpruned, "pruned": written.checkpoint}
    return run.settings.inference.measure(Compared(both, inputs.tokens.batches_BT, run.device, run.in_nf4))


def inference_json(measured: Comparison | None) -> dict[str, Any] | None:
    """The report's `inference`; None if off."""
    return None if measured is None else asdict(measured)
