"""Quick looks at a toy model: held-out accuracies without lm-eval, and how evenly its experts are used.

Shapes: B sequences, S positions, T tokens, K experts per token, E experts, L layers.
"""

import random
import re
from itertools import islice

import torch
from transformers import MixtralForCausalLM, PreTrainedTokenizerFast

from stun_exp.toy.benchmarks import lettered_items, maths_items, question_items, story_items
from stun_exp.toy.lexicon import SUBJECTS
from stun_exp.toy.text import LETTERS, calibration_documents, lettered, lettered_header

NUM_PROBES = 64
Choices = tuple[str, list[str], int]


def choice_probes() -> dict[str, list[Choices]]:
    """Prompt, continuations and index of the right one, for each kind of multiple-choice benchmark."""
    arc = [
        (f"Question: {item['question']}\nAnswer:", [f" {choice}" for choice in item["choices"]], item["gold"])
        for item in question_items(random.Random("arc"))[:NUM_PROBES]
    ]
    stories = [
        (item["ctx"], [f" {ending}" for ending in item["endings"]], item["label"])
        for item in story_items(random.Random("hellaswag"))[:NUM_PROBES]
    ]
    letters = []
    for subject in SUBJECTS:
        for item in lettered_items(subject, random.Random(subject))[: NUM_PROBES // len(SUBJECTS)]:
            block = lettered(item["question"], item["choices"], item["answer"]).removesuffix(
                f" {LETTERS[item['answer']]}"
            )
            letters.append((lettered_header(subject) + block, [f" {letter}" for letter in LETTERS], item["answer"]))
    return {"arc": arc, "hellaswag": stories, "mmlu": letters}


@torch.no_grad()
def choice_accuracy(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast, probes: list[Choices]) -> float:
    """The share of probes whose right continuation has the highest log-probability."""
    rows = [(prompt, choice) for prompt, choices, _ in probes for choice in choices]
    full = tokenizer(
        [prompt + choice for prompt, choice in rows], return_tensors="pt", padding=True, padding_side="right"
    )
    prompt_lengths = torch.tensor([len(ids) for ids in tokenizer([prompt for prompt, _ in rows])["input_ids"]])
    ids_BS, mask_BS = full["input_ids"], full["attention_mask"]
    logits_BSV = model(input_ids=ids_BS.to(model.device)).logits[:, :-1].float().cpu()
    logprob_BS = logits_BSV.log_softmax(-1).gather(-1, ids_BS[:, 1:, None])[..., 0]
    position_S = torch.arange(1, ids_BS.shape[1])
    counted_BS = mask_BS[:, 1:].bool() & (position_S >= prompt_lengths[:, None])
    best = (logprob_BS * counted_BS).sum(1).view(len(probes), -1).argmax(1)
    return float((best == torch.tensor([gold for *_, gold in probes])).float().mean())


@torch.no_grad()
def maths_accuracy(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
    """The share of held-out problems solved by greedy decoding without examples."""
    items = maths_items(random.Random("gsm8k"))[:NUM_PROBES]
    prompts = [f"Question: {item['question']}\nAnswer:" for item in items]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    generated = model.generate(**batch, max_new_tokens=60, do_sample=False)
    texts = tokenizer.batch_decode(generated[:, batch["input_ids"].shape[1] :])
    found = [re.search(r"#### (\d+)", text) for text in texts]
    right = [match and match[1] == item["answer"].split("#### ")[1] for match, item in zip(found, items, strict=True)]
    return sum(map(bool, right)) / len(items)


def accuracies(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Held-out accuracy per benchmark, on a few items each."""
    training = model.training
    model.eval()
    found = {name: choice_accuracy(model, tokenizer, probes) for name, probes in choice_probes().items()}
    found["gsm8k"] = maths_accuracy(model, tokenizer)
    model.train(training)
    return found


@torch.no_grad()
def expert_shares(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast, num_documents: int) -> torch.Tensor:
    """How many tokens of calibration text each expert sees, as a multiple of an equal share (L x E)."""
    ids = []
    for document in islice(calibration_documents(0), num_documents):
        ids += [*tokenizer(document)["input_ids"], tokenizer.eos_token_id]
    length = min(len(ids), 512)
    ids_BS = torch.tensor(ids[: len(ids) // length * length]).view(-1, length).to(model.device)
    config = model.config
    counts_LE = torch.zeros(config.num_hidden_layers, config.num_local_experts)
    for chunk_BS in torch.split(ids_BS, 16):
        for layer, logits_TE in enumerate(model.model(chunk_BS, output_router_logits=True).router_logits):
            chosen_TK = logits_TE.topk(config.num_experts_per_tok, dim=-1).indices
            counts_LE[layer] += chosen_TK.flatten().bincount(minlength=config.num_local_experts).cpu()
    equal_share = ids_BS.numel() * config.num_experts_per_tok / config.num_local_experts
    return counts_LE / float(equal_share)
