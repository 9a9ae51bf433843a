"""A program for a Python that has vLLM, and nothing of this package: it answers questions about one model.

A question is a JSON object on a line of standard input, its answer a JSON value on a line of standard output:

- `{"ask": "installed"}`: the version of vLLM, and the names of the architectures that it has.
- `{"ask": "load", ...}`, with the arguments of vllm.LLM: the longest sequence that the model takes. On a CPU it runs
  without compiling, which takes minutes there.
- `{"ask": "log_probabilities", "prompts": [[ids]]}`: of each prompt's tokens but the first the log-probability, and
  whether none is likelier.
- `{"ask": "generate", "prompts": [[ids]], "sampling": [{}]}`, a prompt's arguments of SamplingParams: the texts.
- `{"ask": "seconds", "prompts": [[ids]], "new_tokens": N}`: what one token after each prompt takes, and what N take.
"""

import json
import os
import time
from typing import Any


class Program:
    """The answers, one method for each kind of question."""

    def installed(self) -> dict[str, Any]:
        import vllm  # type: ignore[import-not-found,unused-ignore]

        return {"version": vllm.__version__, "architectures": sorted(vllm.ModelRegistry.get_supported_archs())}

    def load(self, **arguments: Any) -> int:
        from vllm import LLM
        from vllm.platforms import current_platform  # type: ignore[import-not-found,unused-ignore]

        self.llm = LLM(**{"enforce_eager": current_platform.is_cpu(), **arguments})
        return int(self.llm.llm_engine.model_config.max_model_len)

    def log_probabilities(self, prompts: list[list[int]]) -> list[list[tuple[float, bool]]]:
        # One token is the fewest that vLLM generates; besides a prompt's own token it gives the likeliest.
        answers = self._generate(
            prompts, [{"temperature": 0, "prompt_logprobs": 1, "max_tokens": 1, "detokenize": False}] * len(prompts)
        )
        return [
            [_scored(token, choices) for token, choices in zip(ids[1:], answer.prompt_logprobs[1:], strict=True)]
            for ids, answer in zip(prompts, answers, strict=True)
        ]

    def generate(self, prompts: list[list[int]], sampling: list[dict[str, Any]]) -> list[str]:
        return [answer.outputs[0].text for answer in self._generate(prompts, sampling)]

    def seconds(self, prompts: list[list[int]], new_tokens: int) -> list[float]:
        return [self._seconds(prompts, tokens) for tokens in (1, new_tokens)]

    def _seconds(self, prompts: list[list[int]], tokens: int) -> float:
        sampling = {"max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True, "temperature": 0.0}
        start = time.perf_counter()
        self._generate(prompts, [sampling] * len(prompts))
        return time.perf_counter() - start

    def _generate(self, prompts: list[list[int]], sampling: list[dict[str, Any]]) -> Any:
        from vllm import SamplingParams

        asked = [{"prompt_token_ids": ids} for ids in prompts]
        return self.llm.generate(asked, [SamplingParams(**one) for one in sampling], use_tqdm=False)


def _scored(token: int, choices: Any) -> tuple[float, bool]:
    own = choices[token].logprob
    return own, own >= max(choice.logprob for choice in choices.values())


def main() -> None:
    # Whatever else is said on standard output, by vLLM or its processes, goes where errors go.
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    program = Program()
    for line in questions:
        question = json.loads(line)
        answer = getattr(program, question.pop("ask"))(**question)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
