"""The same models in vLLM, which has an environment of its own: a program that its Python runs."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stun_exp.inference.records import Speed, VllmFigures, Workload
from stun_exp.inference.timing import Seconds, speed
from stun_exp.utils.paths import expanded

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.checkpoint.checkpoint import Checkpoint

PROGRAM = Path(__file__).with_name("vllm_program.py")
NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "TQDM_DISABLE")
"""What names another environment's packages, and what makes vLLM divide by the time of a bar that is not there."""


def measure_in_vllm(
    workload: Workload, python: str, checkpoints: "Mapping[str, Checkpoint]", prompts_BT: "Tensor"
) -> VllmFigures:
    """Tokens a second of the models in vLLM, and why there are none of a model, or of all."""
    first = next(iter(checkpoints.values()))
    with TemporaryDirectory() as scratch:
        job, out = Path(scratch) / "job.json", Path(scratch) / "out.json"
        asked = {
            "models": {name: str(one.path.absolute()) for name, one in checkpoints.items()},
            "dtype": str(first.dtype).removeprefix("torch."),
            "prompts": prompts_BT.tolist(),
            "batch_sizes": workload.batch_sizes,
            "new_tokens": workload.new_tokens,
            "repeats": workload.repeats,
            "out": str(out),
        }
        job.write_text(json.dumps(asked))
        # -P: without it Python would look for every module beside the program first.
        command = [str(expanded(python)), "-P", str(PROGRAM), str(job)]
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
        if done.returncode or not out.is_file():
            why = _last_line(done.stderr) or f"it ended with status {done.returncode}"
            return VllmFigures(None, {}, dict.fromkeys(checkpoints, why))
        return figures(json.loads(out.read_text()), workload)


def figures(given: Mapping[str, Any], workload: Workload) -> VllmFigures:
    """The figures of what the program has left: seconds to the first token and to the last, by model and batch."""
    speeds: dict[str, list[Speed]] = {}
    failed: dict[str, str] = dict(given["failed"])
    for name, times in given["times"].items():
        if any(last <= first for of_batch in times for first, last in of_batch):
            failed[name] = "its times differ by more than what they measure; raise inference.new_tokens"
            continue
        speeds[name] = [
            _speed(size, of_batch, workload) for size, of_batch in zip(workload.batch_sizes, times, strict=True)
        ]
    return VllmFigures(given["version"], speeds, failed)


def _speed(size: int, times: Sequence[Sequence[float]], workload: Workload) -> Speed:
    seconds = [Seconds(first, last - first) for first, last in times]
    return speed(size, workload.prompt_tokens, workload.new_tokens, seconds)


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    # Gigabytes: on a CPU it would take its share of all memory for each model.
    unless_set = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    # Without a process for each engine: an error says what it is, and nothing outlives the program.
    return unless_set | inherited | {"HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def _last_line(text: str) -> str:
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "")
