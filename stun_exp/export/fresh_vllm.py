"""A program, run in a process of its own: the log-probabilities that vLLM gives to the tokens of a few prompts.

Its argument is a JSON object: `folder`, `prompts` (token ids) and `out`, the file for the result: a list for each
prompt, its first token left out.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(job: dict[str, Any]) -> None:
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found,unused-ignore]

    prompts = job["prompts"]
    llm = LLM(model=job["folder"], enforce_eager=True, max_model_len=len(prompts[0]) + 1)
    asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
    answers = llm.generate([{"prompt_token_ids": ids} for ids in prompts], asked)
    given = [
        [choices[token].logprob for token, choices in zip(ids[1:], answer.prompt_logprobs[1:], strict=True)]
        for ids, answer in zip(prompts, answers, strict=True)
    ]
    Path(job["out"]).write_text(json.dumps(given))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
