"""A program that the Python of vLLM's environment runs: seconds that vLLM takes for prompts, model after model.

Its argument is a JSON file: `models` (folders by name), `dtype`, `prompts` (token ids), `batch_sizes`, `new_tokens`,
`repeats`, and `out`, the file for the result: `version`; `times`, by name and batch size pairs of seconds, to the first
token and to the last; and `failed`, by name why a model has none.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> None:
    import vllm  # type: ignore[import-not-found,unused-ignore]

    models, failed = _load(vllm, job)
    times: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in models}
    for size in job["batch_sizes"]:
        prompts = [{"prompt_token_ids": ids} for ids in job["prompts"][:size]]
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
        for number in range(job["repeats"] + 1):
            for name in list(models)[:: 1 if number % 2 else -1]:
                pair = tuple(_seconds(vllm, models[name], prompts, tokens) for tokens in (1, job["new_tokens"]))
                if number:  # the first round warms up
                    rounds[name].append((pair[0], pair[1]))
        for name, of_batch in rounds.items():
            times[name].append(of_batch)
    Path(job["out"]).write_text(json.dumps({"version": vllm.__version__, "times": times, "failed": failed}))


def _load(vllm: Any, job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The models that vLLM takes, side by side, and why it does not take the others."""
    from vllm.platforms import current_platform  # type: ignore[import-not-found,unused-ignore]

    models, failed = {}, {}
    length = len(job["prompts"][0]) + job["new_tokens"]
    for name, folder in job["models"].items():
        try:
            models[name] = vllm.LLM(
                model=folder,
                dtype=job["dtype"],
                max_model_len=length,
                max_num_seqs=max(job["batch_sizes"]),
                gpu_memory_utilization=0.9 / len(job["models"]),
                enable_prefix_caching=False,  # the same prompts come again
                enforce_eager=current_platform.is_cpu(),  # to compile takes minutes there
                seed=0,
            )
        except Exception as error:  # of any of its parts
            failed[name] = " ".join(str(error).split())[:300] or type(error).__name__
    return models, failed


def _seconds(vllm: Any, model: Any, prompts: list[dict[str, list[int]]], tokens: int) -> float:
    asked = vllm.SamplingParams(max_tokens=tokens, min_tokens=tokens, ignore_eos=True, temperature=0.0)
    start = time.perf_counter()
    model.generate(prompts, asked, use_tqdm=False)
    return time.perf_counter() - start


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
