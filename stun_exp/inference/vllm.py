"""The same models in vLLM, each in a process of its own, measured in turns."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from stun_exp.inference.records import Speed, VllmFigures, Workload
from stun_exp.inference.timing import Seconds, in_turns, speed
from stun_exp.serving.vllm_process import InstalledVLLM, VLLMError, VLLMProcess

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.checkpoint.checkpoint import Checkpoint


def measure_in_vllm(
    workload: Workload, vllm: InstalledVLLM, checkpoints: "Mapping[str, Checkpoint]", prompts_BT: "Tensor"
) -> VllmFigures:
    """Tokens a second of the models in vLLM, and why there are none of a model."""
    dtype = str(next(iter(checkpoints.values())).dtype).removeprefix("torch.")
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        processes = {}
        for name, checkpoint in checkpoints.items():
            process = stack.enter_context(VLLMProcess(vllm.python))
            try:
                process.load(
                    checkpoint.path,
                    dtype,
                    max_model_len=workload.prompt_tokens + workload.new_tokens,
                    max_num_seqs=max(workload.batch_sizes),
                    gpu_memory_utilization=0.9 / len(checkpoints),
                    enable_prefix_caching=False,  # the same prompts come again
                    seed=0,
                )
            except VLLMError as error:
                failed[name] = str(error)
            else:
                processes[name] = process
        times: dict[str, list[list[Seconds]]] = {name: [] for name in processes}
        for size in workload.batch_sizes:
            prompts = prompts_BT[:size].tolist()
            runs = [partial(_seconds, process, prompts, workload.new_tokens) for process in processes.values()]
            for name, seconds in zip(processes, in_turns(runs, workload.repeats), strict=True):
                times[name].append([one for one in seconds if isinstance(one, Seconds)])
                if (errors := [one for one in seconds if isinstance(one, str)]) and name not in failed:
                    failed[name] = errors[0]
    figures = {name: of_model for name, of_model in times.items() if name not in failed}
    return speeds(vllm.version, figures, failed, workload)


def speeds(
    version: str, times: Mapping[str, Sequence[Sequence[Seconds]]], failed: Mapping[str, str], workload: Workload
) -> VllmFigures:
    """The figures of what was measured, by model and batch size; `failed` says by name why others were not."""
    found: dict[str, list[Speed]] = {}
    failed = dict(failed)
    for name, of_model in times.items():
        if any(one.decode <= 0 for of_batch in of_model for one in of_batch):
            failed[name] = "its times differ by more than what they measure; raise inference.new_tokens"
            continue
        found[name] = [
            speed(size, workload.prompt_tokens, workload.new_tokens, of_batch)
            for size, of_batch in zip(workload.batch_sizes, of_model, strict=True)
        ]
    return VllmFigures(version, found, failed)


def _seconds(process: VLLMProcess, prompts: list[list[int]], new_tokens: int) -> Seconds | str:
    """What one generation takes; or why it could not, and then at once for all that follow."""
    try:
        first, last = process.seconds(prompts, new_tokens)
    except VLLMError as error:
        return str(error)
    return Seconds(first, last - first)
