"""The proof that a folder loads where users need it: what a fresh process computes against `load_checkpoint`.

Shapes: B sequences, T tokens, V vocabulary.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.serving.vllm_process import VLLMError, VLLMProcess, find_vllm

if TYPE_CHECKING:
    from stun_exp.calibration.protocol import CalibrationTokens

Batch = Mapping[str, list[list[int]]]
SEQUENCES, TOKENS = 4, 64
"""At most so many sequences of the calibration text, and so many tokens of each."""
TOLERANCE, TOLERANCE_16_BITS = 1e-4, 1e-2
"""How far logits may be apart, as a share of the largest: what the order of a sum changes, and no more."""
VLLM_FACTOR, VLLM_LEAST = 2.0, 1e-3
"""vLLM has kernels of its own, which round elsewhere: its log-probabilities may be apart from those in fp32 by twice
what transformers' own are, in the mean, or by this many nats."""


class _Failed(Exception):
    """A fresh process ended with an error, which this repeats."""


def prove(
    written: Checkpoint,
    device: torch.device,
    trust_remote_code: bool,
    tokens: "CalibrationTokens | None" = None,
    vllm_python: str | None = None,
) -> dict[str, Any]:
    """How the folder was loaded, and how far its logits lie from those of the pruned model in memory.

    The memory of the whole model is needed, once here and then once there. `tokens` is the text for it; without, it is
    random. ValueError, naming the folder and who read it, if it cannot be loaded or the logits differ.
    """
    began = time.monotonic()
    batch = proof_batch(tokens) if tokens else fixed_batch(written.config)
    hindrance = _vllm_hindrance(batch, trust_remote_code, vllm_python)
    model = load_checkpoint(written.path, device)
    ours_BTV = logits_BTV(model, batch)
    exact_BTV = ours_BTV if hindrance else exact_logits_BTV(model, written.paths, batch)
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
    compared = compare_logits(ours_BTV, theirs_BTV.float(), written.dtype, f"{written.path}, read by {reader}")
    if hindrance:
        vllm = {"verified": False, "because": hindrance}
    else:
        assert vllm_python
        ids = batch["input_ids"]
        exact, ours = log_probabilities(exact_BTV, ids), log_probabilities(ours_BTV, ids)
        vllm = _prove_vllm(written, ids, exact, ours, vllm_python)
    return {
        "loads_with": reader,
        **compared,
        "tokens": sum(map(len, batch["input_ids"])),
        "vllm": vllm,
        "seconds": round(time.monotonic() - began, 1),
    }


def proof_batch(tokens: "CalibrationTokens") -> dict[str, list[list[int]]]:
    """The beginning of the calibration text, to call the model with."""
    parts = {"input_ids": tokens.batches_BT, "decoder_input_ids": tokens.targets_BT}
    return {name: batches[0][:SEQUENCES, :TOKENS].tolist() for name, batches in parts.items() if batches}


def fixed_batch(config: Any) -> dict[str, list[list[int]]]:
    """Random token ids to call the model with, the same at each call."""
    names = ("input_ids", "decoder_input_ids") if config.is_encoder_decoder else ("input_ids",)
    generator = torch.Generator().manual_seed(0)
    size = (SEQUENCES, TOKENS)
    vocabulary = config.get_text_config().vocab_size
    return {name: torch.randint(vocabulary, size, generator=generator).tolist() for name in names}


def logits_BTV(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The model's logits on a batch, in fp32 on the CPU."""
    with torch.inference_mode():
        called = {name: torch.tensor(ids, device=model.device) for name, ids in batch.items()}
        logits: Tensor = model(**called).logits
    return logits.float().cpu()


def exact_logits_BTV(model: PreTrainedModel, layers: Sequence[str], batch: Batch) -> Tensor:
    """The model's logits on a batch, computed in 32 bits throughout.

    A layer has its weights in 32 bits while it runs, so that no more memory is needed than for the model as it is.
    """
    inside = tuple(f"{name}." for name in layers)
    parts = [
        module
        for name, module in model.named_modules()
        if name in layers
        or (not f"{name}.".startswith(inside) and next(module.parameters(recurse=False), None) is not None)
    ]
    dtypes = {parameter: parameter.dtype for parameter in model.parameters()}

    def widen(module: Module, _: Any) -> None:
        for parameter in module.parameters():
            parameter.data = parameter.data.float()

    def narrow(module: Module, *_: Any) -> None:
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtypes[parameter])  # nothing is lost: they were widened from it

    with ExitStack() as stack:
        for part in parts:
            stack.callback(part.register_forward_pre_hook(widen).remove)
            stack.callback(part.register_forward_hook(narrow).remove)
        return logits_BTV(model, batch)


def log_probabilities(logits_BTV: Tensor, ids: Sequence[Sequence[int]]) -> Tensor:
    """Of each token but the first of a sequence (B x T-1), in nats."""
    ids_BT = torch.tensor(ids)
    return logits_BTV[:, :-1].log_softmax(-1).gather(-1, ids_BT[:, 1:, None])[..., 0]


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


def compare_log_probabilities(exact: Tensor, ours: Tensor, theirs: Tensor, what: str) -> dict[str, float]:
    """Their mean difference from the exact ones, and how much is allowed; ValueError beyond it, or for NaN.

    Args:
        exact: Those of transformers in 32 bits.
        ours: Those of transformers in the checkpoint's dtype, whose rounding is the measure.
        theirs: Another runtime's, in the checkpoint's dtype.
        what: Which folder was read by what.
    """
    tolerance = max(VLLM_FACTOR * (exact - ours).abs().mean().item(), VLLM_LEAST)
    difference = (exact - theirs).abs().mean().item()
    if not difference <= tolerance:
        raise ValueError(
            f"{what}, is not the pruned model in memory: their log-probabilities of a token are {difference:.3g} nats "
            f"apart in the mean, and {tolerance:.3g} is allowed, by what rounding changes in transformers; do not use "
            "it there"
        )
    return {"mean_logprob_difference": difference, "tolerance": tolerance}


def _vllm_hindrance(batch: Batch, trust_remote_code: bool, python: str | None) -> str | None:
    """Why nothing can be proven of vLLM; None if it can be asked."""
    if trust_remote_code:
        return "vLLM builds every layer for equally many experts"
    if "decoder_input_ids" in batch:
        return "vLLM runs no encoder-decoder of this kind"
    return None if python else "no vLLM was named (export.vllm_python)"


def _prove_vllm(written: Checkpoint, ids: list[list[int]], exact: Tensor, ours: Tensor, python: str) -> dict[str, Any]:
    """Whether vLLM gives the same, or why that is not known; ValueError if it gives something else."""
    version = find_vllm(python, "export.vllm_python").version
    dtype = str(written.dtype).removeprefix("torch.")
    try:
        with VLLMProcess(python) as vllm:
            vllm.load(written.path, dtype, enforce_eager=True, max_model_len=len(ids[0]) + 1)
            given = vllm.log_probabilities(ids)
    except VLLMError as error:
        return {"verified": False, "because": f"vLLM {version} could not run the model: {error}"}
    theirs = torch.tensor([[own for own, _ in row] for row in given])
    compared = compare_log_probabilities(exact, ours, theirs, f"{written.path}, read by vLLM {version}")
    return {"verified": True, "version": version, **compared}


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
