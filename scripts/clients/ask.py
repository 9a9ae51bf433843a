"""What each client makes of an exported checkpoint, against transformers here.

Shapes: B texts, T tokens.
"""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from stun_exp.calibration.toy import ToyText
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.export.proof import (
    compare_log_probabilities,
    exact_logits_BTV,
    log_probabilities,
    logits_BTV,
    proof_batch,
)
from stun_exp.serving.vllm_process import VLLMError, VLLMProcess, find_vllm
from stun_exp.utils.files import read_json_object

CLIENTS = Path(".clients")
PROMPTS, PROMPT_TOKENS, GENERATED = 20, 24, 16
CPU = torch.device("cpu")
Ids = list[list[int]]


@dataclass(frozen=True)
class Reference:
    """What transformers computes of a checkpoint."""

    folder: Path
    dtype: str
    texts: Ids
    prompts: Ids
    exact: Tensor
    """Log-probabilities of the texts' tokens in 32 bits, B x T-1."""
    own: Tensor
    """The same in the checkpoint's dtype."""
    greedy: dict[str, list[str]]
    """What follows the prompts, likeliest token by token, by the dtype that is computed in: that one, and 32 bits."""
    end: int
    """The token that ends a text."""


@dataclass(frozen=True)
class Answer:
    """What a client says of the same checkpoint."""

    scores: Tensor
    greedy: list[str]
    dtype: str
    """What it computed in."""
    versions: dict[str, str] = field(default_factory=dict)


class Refused(Exception):
    """The client does not run the model, and this says why."""


def reference(folder: Path) -> Reference:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = ToyText(domain="all", num_sequences=PROMPTS, sequence_length=64, batch_size=PROMPTS)
    tokens = text.tokens(tokenizer, seed=1)
    texts = proof_batch(tokens)["input_ids"]
    prompts_BT = tokens.batches_BT[0][:, :PROMPT_TOKENS]
    written = Checkpoint(folder, None)
    model = load_checkpoint(folder, CPU)
    batch = {"input_ids": texts}
    exact = log_probabilities(exact_logits_BTV(model, written.paths, batch), texts)
    own = log_probabilities(logits_BTV(model, batch), texts)
    end = tokenizer.eos_token_id
    dtype, greedy = str(written.dtype).removeprefix("torch."), {}
    for name in (dtype, "float32"):
        made = _greedy(model.to(getattr(torch, name)), prompts_BT)
        greedy[name] = [tokenizer.decode(_until_end(ids, end)) for ids in made]
    return Reference(folder, dtype, texts, prompts_BT.tolist(), exact, own, greedy, end)


def _greedy(model: PreTrainedModel, prompts_BT: Tensor) -> Ids:
    seen_BT = torch.ones_like(prompts_BT)
    made_BT = model.generate(prompts_BT, attention_mask=seen_BT, do_sample=False, max_new_tokens=GENERATED)
    ids: Ids = made_BT[:, PROMPT_TOKENS:].tolist()
    return ids


def _until_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def ask_vllm(known: Reference) -> Answer:
    python = str(CLIENTS / "vllm" / "bin" / "python")
    found = find_vllm(python, "make clients")
    if why := found.obstacle(read_json_object(known.folder / "config.json")["architectures"]):
        raise Refused(why)
    sampling = {"temperature": 0.0, "max_tokens": GENERATED, "skip_special_tokens": False}
    try:
        with VLLMProcess(python) as process:
            process.load(known.folder, known.dtype, enforce_eager=True, max_model_len=128)
            scores = process.log_probabilities(known.texts)
            greedy = process.generate(known.prompts, [sampling] * len(known.prompts))
    except VLLMError as error:
        raise Refused(str(error)) from error
    return Answer(
        torch.tensor([[own for own, _ in row] for row in scores]), greedy, known.dtype, {"vllm": found.version}
    )


def ask_mlx(known: Reference) -> Answer:
    job = {"texts": known.texts, "prompts": known.prompts, "length": GENERATED, "folder": str(known.folder.absolute())}
    found = run_program("mlx", "mlx_program", job)
    tokenizer = AutoTokenizer.from_pretrained(known.folder)
    greedy = [tokenizer.decode(_until_end(ids, known.end)) for ids in found["greedy"]]
    return Answer(torch.tensor(found["scores"]), greedy, "float32", found["versions"])


def run_program(client: str, program: str, job: dict[str, Any]) -> Any:
    """What a program of this folder leaves, run by a client's Python; Refused with its last error."""
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        file = Path(__file__).with_name(f"{program}.py")
        command = [str(CLIENTS / client / "bin" / "python"), "-P", str(file), json.dumps(job | {"out": str(out)})]
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TQDM_DISABLE")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment | {"HF_HUB_OFFLINE": "1"})
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise Refused(lines[-1] if lines else f"it ended with status {done.returncode}")
        return json.loads(out.read_text())


ASK: dict[str, Callable[[Reference], Answer]] = {"vLLM": ask_vllm, "mlx-lm": ask_mlx}


def verdict(client: str, known: Reference, served: Reference | None = None) -> dict[str, Any]:
    """Whether a client computes what transformers does; `served` is what it reads, if that is another folder."""
    try:
        answer = ASK[client](served or known)
    except Refused as why:
        return {"client": client, "proven": None, "because": str(why)}
    greedy = {"greedy_equal": sum(a == b for a, b in zip(known.greedy[answer.dtype], answer.greedy, strict=True))}
    found = {
        "client": client,
        "versions": answer.versions,
        "computed_in": answer.dtype,
        **greedy,
        "prompts": len(known.prompts),
    }
    try:
        ours = known.own if answer.dtype == known.dtype else known.exact
        compared = compare_log_probabilities(known.exact, ours, answer.scores, client)
    except ValueError as error:
        return {**found, "proven": False, "because": str(error)}
    return {**found, "proven": True, **compared}
