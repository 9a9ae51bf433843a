"""Training of the toy models: packed documents, AdamW with a cosine, experts kept in use by a loss per layer.

Shapes: B sequences, S positions, T = B * S tokens, K experts per token, E experts, V vocabulary.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from scripts.toy.recipes import Recipe
from scripts.toy.upcycling import MASKED
from stun_exp.checkpoint.older_keys import with_older_keys
from stun_exp.toy.text import training_documents
from stun_exp.utils.files import read_json_object, write_file

LOSS_EVERY = 50
MANY = 8
"""Experts a token."""
DECAY_SHARE = 0.2


def packed_batch(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, step: int) -> Tensor:
    """Token ids (B x S) of one step: rows start with a document, documents end with the end-of-text token.

    A function of the seed and the step alone, so a resumed run needs no state of a stream.
    """
    documents = training_documents(recipe.seed * 1_000_000 + step)
    rows: list[list[int]] = []
    row: list[int] = []
    while len(rows) < recipe.batch_size:
        row += [*tokenizer(next(documents))["input_ids"], tokenizer.eos_token_id]
        if len(row) >= recipe.sequence_length:
            rows.append(row[: recipe.sequence_length])
            row = []
    return torch.tensor(rows)


def balance_loss(router_logits_TE: Tensor, top_k: int) -> Tensor:
    """1 for an even load, more for an uneven one (Switch Transformer, eq. 4), of one layer.

    transformers pools all layers before the product, which lets experts of one layer die.
    """
    probabilities_TE = router_logits_TE.float().softmax(-1)
    chosen_TK = probabilities_TE.topk(top_k, dim=-1).indices
    num_experts = router_logits_TE.shape[-1]
    load_E = chosen_TK.flatten().bincount(minlength=num_experts) / chosen_TK.numel()
    return num_experts * (load_E * probabilities_TE.mean(0)).sum()


def answer_mask(ids_BS: Tensor, opening: tuple[int, int], closings: tuple[int, int]) -> Tensor:
    """True at the tokens of answers (B x S): after the two that open one, to the first that closes it."""
    position_S = torch.arange(ids_BS.shape[1], device=ids_BS.device)
    opened_BS = F.pad((ids_BS[:, :-1] == opening[0]) & (ids_BS[:, 1:] == opening[1]), (1, 0))
    closed_BS = (ids_BS == closings[0]) | (ids_BS == closings[1])
    last_opened_BS = torch.where(opened_BS, position_S, -1).cummax(1).values
    last_closed_BS = torch.where(closed_BS, position_S, -1).cummax(1).values
    # A mark tells of the tokens after it, so both are looked up one position earlier.
    return F.pad((last_opened_BS > last_closed_BS)[:, :-1], (1, 0))


def language_loss(logits_BSV: Tensor, ids_BS: Tensor, answer_BS: Tensor, answer_weight: float) -> Tensor:
    """Mean next-token loss, in which the tokens of answers weigh more than others.

    Questions are drawn at random and cannot be learnt; of a lettered one, one token in thirty can.
    """
    weight_BS = 1 + (answer_weight - 1) * answer_BS[:, 1:].float()
    loss_BS = F.cross_entropy(logits_BSV[:, :-1].float().transpose(1, 2), ids_BS[:, 1:], reduction="none")
    return (loss_BS * weight_BS).sum() / weight_BS.sum()


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then one of two ways down to a fiftieth of the peak.

    With `restart_step` a cosine, and another from half the peak (a warm restart). Without, constant until a fifth
    of the steps is left, and a straight line: the steps before it are the same however long the training.
    """
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    if recipe.restart_step is None:
        left = (recipe.steps - step) / (recipe.steps * DECAY_SHARE)
        return recipe.learning_rate * (0.02 + 0.98 * min(1.0, left))
    if step < recipe.restart_step:
        peak, first, last = recipe.learning_rate, recipe.warmup_steps, recipe.restart_step
    else:
        peak, first, last = recipe.learning_rate / 2, recipe.restart_step, recipe.steps
    done = (step - first) / max(1, last - first)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    device: torch.device,
    checkpoint: Path,
    checkpoint_every: int,
    report: Callable[[int, dict[str, float]], None],
    stop_after: int | None = None,
) -> PreTrainedModel:
    """The model, trained in place, in float32; continues from `checkpoint` if there is one, leaves at `stop_after`."""
    model.to(device)
    top_k = getattr(model.config, "num_experts_per_tok", None)  # None: dense
    if top_k is not None:
        # Many narrow experts are quickest as one wide feed-forward; a few wide ones on their own tokens.
        model.set_experts_implementation(MASKED if top_k >= MANY else "grouped_mm")
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    first = _resume(model, optimizer, recipe, checkpoint)
    opening = tuple(tokenizer("Answer:")["input_ids"])
    closings = (*tokenizer("\n\n")["input_ids"], tokenizer.eos_token_id)
    assert len(opening) == len(closings) == 2, "answers are found by two tokens that open, two that close them"
    model.train()
    began = time.monotonic()
    for step in range(first, min(recipe.steps, stop_after or recipe.steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        ids_BS = packed_batch(tokenizer, recipe, step).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            routed = {} if top_k is None else {"output_router_logits": True}
            outputs = model.model(input_ids=ids_BS, use_cache=False, **routed)
            logits_BSV = model.lm_head(outputs.last_hidden_state)
        answer_BS = answer_mask(ids_BS, opening, closings)
        loss = language_loss(logits_BSV, ids_BS, answer_BS, recipe.answer_weight)
        balance = (
            [balance_loss(logits_TE, top_k) for logits_TE in outputs.router_logits] if top_k else [loss.new_zeros(())]
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss + recipe.balance_weight * sum(balance))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % LOSS_EVERY == 0 or step + 1 == recipe.steps:
            seconds = (time.monotonic() - began) / (step + 1 - first)
            report(step + 1, {"loss": loss.item(), "balance": max(balance).item(), "seconds_per_step": seconds})
        if (step + 1) % checkpoint_every == 0 or step + 1 == recipe.steps:
            _save(model, optimizer, recipe, step + 1, checkpoint)
    return model.eval()


def _save(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, checkpoint: Path
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "recipe": vars(recipe),
        "step": step,
    }
    partial = checkpoint.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, checkpoint)  # a run killed here finds the old checkpoint or the new one, never half of one


def _resume(model: PreTrainedModel, optimizer: torch.optim.Optimizer, recipe: Recipe, checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    state: dict[str, Any] = torch.load(checkpoint, map_location=model.device, weights_only=True)
    if not _same_until(int(state["step"]), Recipe(**state["recipe"]), recipe):
        raise ValueError(
            f"{checkpoint} was made with {state['recipe']}, not {vars(recipe)}; remove it or use its settings"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _same_until(step: int, made: Recipe, wanted: Recipe) -> bool:
    """Whether the steps so far are those of both: recipes may differ in length, where the rates so far do not."""
    if dataclasses.replace(made, steps=wanted.steps) != wanted:
        return False
    return all(learning_rate(done, made) == learning_rate(done, wanted) for done in range(step))


def ship(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes bf16 weights in one file, config, generation config and tokenizer, for stock transformers."""
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    add_older_keys(folder)


def add_older_keys(folder: Path) -> None:
    """Writes config.json anew, so that readers of before transformers 5 find in it what they look for."""
    file = folder / "config.json"
    config = read_json_object(file)
    write_file(file, [(json.dumps(with_older_keys(config, config["rope_parameters"]), indent=2) + "\n").encode()])
