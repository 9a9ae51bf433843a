"""A model in vLLM as lm-eval asks one: the same questions as its own vLLM backend, which wants vLLM in this process."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    maybe_truncate,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from stun_exp.serving.vllm_process import VLLMProcess

MAX_GENERATED = 256
"""Tokens that a task gets which names no number, in all of lm-eval's backends."""
Request = tuple[tuple[str, str] | None, list[int], list[int]]


class VLLMModel(TemplateLM):  # type: ignore[misc]
    """Tokenizes and cuts here, scores and generates there."""

    def __init__(self, process: VLLMProcess, tokenizer: Any):
        super().__init__()
        self.process = process
        self.tokenizer = tokenizer

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if not string:
            return []
        if has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer(string, return_attention_mask=False, **special)["input_ids"]
        return ids

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[tuple[float, bool]]:
        longest = self.process.max_length - 1  # vLLM generates a token too
        prompts = [(context + continuation)[-longest:] for _, context, continuation in requests]
        scores = self.process.log_probabilities(prompts)
        # The first token has no score, and what is cut off lies before the continuation, whose scores are the last.
        own = [
            score[max(0, len(score) - len(continuation)) :]
            for score, (_, _, continuation) in zip(scores, requests, strict=True)
        ]
        return [(sum(value for value, _ in score), all(best for _, best in score)) for score in own]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        windows = [[make_disjoint_window(window) for window in self._windows(request.args[0])] for request in requests]
        scores = iter(self._loglikelihood_tokens([(None, *window) for of_one in windows for window in of_one]))
        return [sum(next(scores)[0] for _ in of_one) for of_one in windows]

    def _windows(self, text: str) -> Any:
        return get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.process.max_length - 2,  # one token of context, and one that is generated
            context_len=1,
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        prompts, sampling = [], []
        for request in requests:
            text, arguments = request.args
            wanted = normalize_gen_kwargs(arguments, default_max_gen_toks=MAX_GENERATED)
            stop = handle_stop_sequences(wanted.pop("until", None), eos=self._end())
            prompt, length = maybe_truncate(
                self.tok_encode(text), max_gen_toks=wanted.pop("max_gen_toks"), max_model_len=self.process.max_length
            )
            wanted.pop("do_sample", None)  # with a temperature of 0 it says nothing more
            shown = {"skip_special_tokens": False, "spaces_between_special_tokens": False}
            prompts.append(prompt)
            sampling.append({"max_tokens": length, "stop": stop, **shown, **wanted})
        texts = self.process.generate(prompts, sampling)
        return [postprocess_generated_text(text, one["stop"], None) for text, one in zip(texts, sampling, strict=True)]

    def _end(self) -> str:
        return str(self.tokenizer.decode(self.eot_token_id) or self.tokenizer.eos_token)
