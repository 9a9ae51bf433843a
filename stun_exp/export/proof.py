"""The proof that a folder loads where users need it: logits from a fresh process against those of `load_checkpoint`.

Shapes: B sequences, T tokens, V vocabulary.
"""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint

SEQUENCES, TOKENS = 2, 24
TOLERANCE, TOLERANCE_16_BITS = 1e-4, 1e-2
"""How far logits may be apart, as a share of the largest: what the order of a sum changes, and no more."""
VLLM_TOLERANCE = 0.1
"""How far the log-probabilities of tokens may be apart in the mean, in nats: vLLM has kernels of its own."""


class _Failed(Exception):
    """A fresh process ended with an error, which this repeats."""


def prove(written: Checkpoint, device: torch.device, trust_remote_code: bool) -> dict[str, Any]:
    """How the folder was loaded, and how far its logits lie from those of the pruned model in memory.

    The memory of the whole model is needed, once here and then once there. ValueError, naming the folder and who read
    it, if it cannot be loaded or the logits differ.
    """
    began = time.monotonic()
    batch = fixed_batch(written.config)
    model = load_checkpoint(written.path, device)
    ours_BTV = logits_BTV(model, batch)
    del model  # its memory is wanted there
    torch.cuda.empty_cache()
    auto = "AutoModelForSeq2SeqLM" if written.config.is_encoder_decoder else "AutoModelForCausalLM"
    call = f"{auto}.from_pretrained(DIR{', trust_remote_code=True' if trust_remote_code else ''})"
    reader = f"transformers {transformers.__version__}, {call}"
    job = {"batch": batch, "auto": auto, "trust_remote_code": trust_remote_code, "device": device.type}
    try:
        theirs_BTV = torch.load(BytesIO(_run("fresh_transformers", written.path, job)))
    except _Failed as error:
        raise ValueError(f"{written.path}: a fresh process could not load it by {reader}: {error}") from error
    return {
        "loads_with": reader,
        **compare_logits(ours_BTV, theirs_BTV.float(), written.dtype, f"{written.path}, read by {reader}"),
        "tokens": SEQUENCES * TOKENS,
        "vllm": _prove_vllm(written.path, batch, ours_BTV, trust_remote_code),
        "seconds": round(time.monotonic() - began, 1),
    }


def fixed_batch(config: Any) -> dict[str, list[list[int]]]:
    """Token ids to call the model with, the same at each call."""
    names = ("input_ids", "decoder_input_ids") if config.is_encoder_decoder else ("input_ids",)
    generator = torch.Generator().manual_seed(0)
    size = (SEQUENCES, TOKENS)
    vocabulary = config.get_text_config().vocab_size
    return {name: torch.randint(vocabulary, size, generator=generator).tolist() for name in names}


def logits_BTV(model: PreTrainedModel, batch: dict[str, list[list[int]]]) -> Tensor:
    """The model's logits on a batch, in fp32 on the CPU."""
    with torch.inference_mode():
        called = {name: torch.tensor(ids, device=model.device) for name, ids in batch.items()}
        logits: Tensor = model(**called).logits
    return logits.float().cpu()


def compare_logits(ours_BTV: Tensor, theirs_BTV: Tensor, dtype: torch.dtype, what: str) -> dict[str, float]:
    """The largest difference, and the tolerance for models of that dtype; ValueError beyond it, or for NaN."""
    share = TOLERANCE if dtype.itemsize > 2 else TOLERANCE_16_BITS
    tolerance = share * ours_BTV.abs().max().item()
    difference = (ours_BTV - theirs_BTV).abs().max().item()
    if not difference <= tolerance:
        raise ValueError(
            f"{what}, is not the pruned model in memory: their logits are up to {difference:.3g} apart, and "
            f"{tolerance:.3g} is allowed ({share:g} of the largest); do not use it there (export=none proves nothing)"
        )
    return {"max_logit_difference": difference, "tolerance": tolerance}


def _prove_vllm(
    folder: Path, batch: dict[str, list[list[int]]], ours_BTV: Tensor, trust_remote_code: bool
) -> dict[str, Any]:
    """Whether vLLM gives the same, or why that is not known; ValueError if it gives something else."""
    if trust_remote_code:
        return {"verified": False, "because": "vLLM builds every layer for equally many experts"}
    if "decoder_input_ids" in batch:
        return {"verified": False, "because": "vLLM runs no encoder-decoder of this kind"}
    if find_spec("vllm") is None:
        return {"verified": False, "because": "vLLM is not installed here"}
    try:
        given = json.loads(_run("fresh_vllm", folder, {"prompts": batch["input_ids"]}))
    except _Failed as error:
        return {"verified": False, "because": f"vLLM is installed, and could not run the model: {error}"}
    ids_BT = torch.tensor(batch["input_ids"])
    ours_BT = ours_BTV[:, :-1].log_softmax(-1).gather(-1, ids_BT[:, 1:, None])[..., 0]
    difference = (ours_BT - torch.tensor(given)).abs().mean().item()
    if not difference <= VLLM_TOLERANCE:
        raise ValueError(
            f"{folder}, read by vLLM, is not the pruned model in memory: their log-probabilities of a token are "
            f"{difference:.3g} nats apart in the mean, and {VLLM_TOLERANCE:g} is allowed; do not use it there"
        )
    return {"verified": True, "mean_logprob_difference": difference, "tolerance": VLLM_TOLERANCE}


def _run(program: str, folder: Path, job: dict[str, Any]) -> bytes:
    """What a program of this room leaves in its file; _Failed with the last line of its error."""
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        job = {"folder": str(folder.absolute()), "scratch": scratch, "out": str(out)} | job
        # Code that comes with a model is copied before it is run: here, and not into the user's cache.
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": scratch}
        # -P: without it Python would look for every module beside the program first.
        command = [sys.executable, "-P", str(Path(__file__).with_name(f"{program}.py")), json.dumps(job)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise _Failed(lines[-1].strip() if lines else f"it ended with status {done.returncode}")
        return out.read_bytes()
