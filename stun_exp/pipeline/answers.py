"""The unpruned model's answers to prompts, for a calibration that asks it; kept for other runs like drawn tokens.

Shapes: B prompts, T tokens.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from stun_exp.calibration.protocol import Sampling
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import assemble
from stun_exp.checkpoint.placement import find_places, free_memory
from stun_exp.state.computed import computed_once
from stun_exp.state.device import circumstances, machine
from stun_exp.state.fingerprint import made_by

if TYPE_CHECKING:
    from stun_exp.pipeline.context import RunContext

NF4_BYTES = 4.5 / 8
"""Of a weight in 4 bits, its share of a scale included."""


@dataclass(frozen=True)
class Answers:
    """The tokens that follow each of some prompts."""

    tokens: list[list[int]]


class ModelAnswers:
    """The unpruned model, whose weights are read when it is first asked something that the cache does not hold."""

    def __init__(self, run: "RunContext", checkpoint: Checkpoint) -> None:
        self.run = run
        self.checkpoint = checkpoint
        self._given: dict[str, list[list[int]]] = {}
        """Calibration and recovery ask the same first."""

    @cached_property
    def _depends_on(self) -> dict[str, Any]:
        """All that an answer depends on besides prompt and sampling."""
        return {
            "checkpoint": self.checkpoint.identity(self.run.digests.of),
            "dtype": str(self.checkpoint.dtype),
            "nf4": self.run.in_nf4,
            **circumstances(self.run.device),
            **made_by(__name__),
        }

    def __call__(self, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
        self._check_length(max(map(len, prompts)), sampling.max_tokens)
        asked = {"prompts": sha256(json.dumps(prompts).encode()).hexdigest(), **asdict(sampling)}
        name = json.dumps(asked)
        if name not in self._given:
            self._given[name] = self._once({**asked, **self._depends_on}, prompts, sampling).tokens
        return self._given[name]

    def _once(self, key: Mapping[str, Any], prompts: list[list[int]], sampling: Sampling) -> Answers:
        """From the cache, with whose cost the run is charged, or else from the model."""
        run = self.run
        return computed_once(
            run.store, "answers", key, Answers, run.cost, lambda: Answers(answers(self._model, prompts, sampling))
        )

    def _check_length(self, prompt: int, answer: int) -> None:
        longest = getattr(self.checkpoint.config, "max_position_embeddings", None)
        if longest is not None and prompt + answer > longest:
            raise ValueError(
                f"calibration.answer_tokens={answer}: with a prompt of {prompt} tokens that is more than the {longest} "
                f"that the model takes (max_position_embeddings); lower it, or calibration.prompt_tokens"
            )

    @cached_property
    def _model(self) -> PreTrainedModel:
        run, checkpoint = self.run, self.checkpoint
        places = None
        if run.device.type == "cuda":
            places = find_places(checkpoint, run.in_nf4, free_memory())
            places = None if set(places.values()) == {0} else places
        elif checkpoint.scratch is None:
            check_fits(checkpoint, run.in_nf4, machine()["RAM"])
        else:
            run.warn(
                "calibration=self with stream.experts=disk: experts are read from disk for every token of an answer"
            )
        return assemble(checkpoint, run.device, run.in_nf4, places=places)


def check_fits(checkpoint: Checkpoint, nf4: bool, memory: int) -> None:
    """ValueError if the whole model is larger than memory."""
    size = checkpoint.num_parameters * (NF4_BYTES if nf4 else checkpoint.dtype.itemsize)
    if size > memory:
        raise ValueError(
            f"calibration=self runs the whole unpruned model, which takes {size / 1e9:,.1f} GB, and this machine has "
            f"{memory / 1e9:,.1f} GB of memory; pass stream=out_of_core, with which experts lie on disk, "
            "model.load=nf4, or another calibration"
        )


@torch.inference_mode()
def answers(model: PreTrainedModel, prompts: list[list[int]], sampling: Sampling) -> list[list[int]]:
    """What a model adds to each prompt, up to its first end of text, which counts.

    Prompts are padded on their left, which attention does not see.
    """
    longest = max(map(len, prompts))
    padded_BT = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    seen_BT = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    ends = _ends(model)
    # Nothing of the model's own: many come with a temperature, or a penalty, that was not asked for.
    sampled: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        sampled = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    model.generation_config = GenerationConfig(
        max_new_tokens=sampling.max_tokens, eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0, **sampled
    )
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        made_BT = model.generate(padded_BT.to(device), attention_mask=seen_BT.to(device))
    return [_until_end(answer, ends) for answer in made_BT[:, longest:].tolist()]


def _ends(model: PreTrainedModel) -> list[int]:
    """The tokens that the model ends a text with."""
    found = model.generation_config.eos_token_id
    if found is None:
        found = model.config.get_text_config().eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def _until_end(answer: list[int], ends: list[int]) -> list[int]:
    return next((answer[: place + 1] for place, token in enumerate(answer) if token in ends), answer)
