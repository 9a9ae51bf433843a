"""Models loaded side by side, and everything that is measured of them.

Shapes: B sequences, T tokens of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import assemble
from stun_exp.inference.fitting import check_fits, check_length, room_on, size_of
from stun_exp.inference.kernels import expert_products, halve_linears_
from stun_exp.inference.records import KV_TOKENS, Comparison, ModelFigures, Speed, Variant, Workload
from stun_exp.inference.routing import experts_hit
from stun_exp.inference.storage import (
    MatrixZeros,
    active_parameters,
    cache_bytes,
    disk_bytes,
    fill_zeros_,
    storage_formats,
    weight_bytes,
    zeros_of,
)
from stun_exp.inference.timing import cache_behind, clock_of, generate, in_turns, speed
from stun_exp.inference.vllm import measure_in_vllm
from stun_exp.serving.vllm_process import InstalledVLLM
from stun_exp.state.device import name_of
from stun_exp.utils.progress import track

if TYPE_CHECKING:
    from stun_exp.inference.protocol import Compared

WORTH_FILLING = 0.01
"""Share of zeros from which a model is measured without them too."""
PLAIN, FILLED, HALVED = "", "zeros filled in", "2:4 linears"
"""A model as it is, without its zeros, and with sparse kernels for those plain linears that have the pattern."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory, and the zeros that were found as it was read."""

    checkpoint: Checkpoint
    model: PreTrainedModel
    matrices: list[MatrixZeros]
    variants: dict[str, PreTrainedModel] = field(default_factory=dict)

    @property
    def zeros(self) -> float:
        """Share of the weights in matrices."""
        return sum(matrix.zeros for matrix in self.matrices) / max(sum(m.weights for m in self.matrices), 1)


@torch.inference_mode()
def compare(compared: "Compared", workload: Workload, installed: InstalledVLLM | None) -> Comparison:
    """All that is measured of the models; ValueError if they do not fit in memory side by side, or do not belong."""
    _check_belonging(compared, workload)
    check_fits(compared.checkpoints.values(), compared.device, compared.nf4)
    prompts_BT, short = first_prompts(compared.batches_BT, max(workload.batch_sizes), workload.prompt_tokens)
    models, notes = _in_transformers(compared, workload, prompts_BT)
    if compared.device.type == "cuda":
        torch.cuda.empty_cache()  # what follows wants the memory
    vllm = None
    if installed is not None:
        vllm = measure_in_vllm(workload, installed, compared.checkpoints, prompts_BT)
    kernels, failed = expert_products(compared.device, workload.repeats)
    dtype = next(iter(compared.checkpoints.values())).dtype
    return Comparison(
        engine=f"transformers {transformers.__version__}",
        device=name_of(compared.device),
        threads=torch.get_num_threads(),
        dtype="nf4" if compared.nf4 else str(dtype).removeprefix("torch."),
        workload=workload,
        models=models,
        vllm=vllm,
        kernels=kernels,
        notes=[*short, *notes, *failed],
    )


def first_prompts(batches_BT: Sequence[Tensor], count: int, length: int) -> tuple[Tensor, list[str]]:
    """The first `count` pieces of `length` tokens of the text, and what there is to say of text that is too short."""
    tokens = torch.cat([batch.flatten() for batch in batches_BT])
    times = -(-count * length // len(tokens))
    told = f"the text has {len(tokens):,} tokens and {count * length:,} are read: it is read {times} times, which hits "
    notes = [told + "fewer experts than text that goes on"] if times > 1 else []
    return tokens.repeat(times)[: count * length].view(count, length), notes


def _check_belonging(compared: "Compared", workload: Workload) -> None:
    """ValueError for models that cannot read the same token ids, or not so many."""
    for checkpoint in compared.checkpoints.values():
        check_length(checkpoint, workload)
    sizes = {name: one.config.get_text_config().vocab_size for name, one in compared.checkpoints.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        raise ValueError(f"the models have vocabularies of different sizes ({told}); compare models of one tokenizer")


def _load(checkpoint: Checkpoint, compared: "Compared") -> Loaded:
    matrices: list[MatrixZeros] = []
    model = assemble(checkpoint, compared.device, compared.nf4, lambda layer: matrices.extend(zeros_of(layer)))
    return Loaded(checkpoint, model, matrices)


def _in_transformers(
    compared: "Compared", workload: Workload, prompts_BT: Tensor
) -> tuple[list[ModelFigures], list[str]]:
    """The figures of the models, which are in memory for that time alone, and what could not be measured."""
    loaded = {name: _load(checkpoint, compared) for name, checkpoint in compared.checkpoints.items()}
    notes = _add_variants_(loaded, compared)
    now = clock_of(compared.device)
    running = {(name, variant): model for name, one in loaded.items() for variant, model in one.variants.items()}
    running |= {(name, PLAIN): one.model for name, one in loaded.items()}
    speeds: dict[tuple[str, str], list[Speed]] = {key: [] for key in running}
    for size in track(workload.batch_sizes, "generating"):
        runs = [partial(generate, model, prompts_BT[:size], workload.new_tokens, now) for model in running.values()]
        for key, times in zip(running, in_turns(runs, workload.repeats), strict=True):
            speeds[key].append(speed(size, workload.prompt_tokens, workload.new_tokens, times))
    before = weight_bytes(next(iter(loaded.values())).model)
    models = [
        _figures(name, one, before, workload, prompts_BT, {v: speeds[name, v] for v in (PLAIN, *one.variants)})
        for name, one in loaded.items()
    ]
    return models, notes


def _add_variants_(loaded: dict[str, Loaded], compared: "Compared") -> list[str]:
    """Loads models with zeros once more without them, and on a GPU with sparse kernels; gives what there is to say."""
    notes, used = [], sum(map(size_of, compared.checkpoints.values()))
    for name, one in loaded.items():
        if one.zeros < WORTH_FILLING or compared.nf4:
            continue
        sparse = compared.device.type == "cuda" and any(matrix.two_four for matrix in one.matrices)
        used += (1 + sparse) * size_of(one.checkpoint)
        if used > room_on(compared.device):
            notes.append(
                f"{name}: what its zeros do to speed was not measured: no memory for it once more without them"
            )
            continue
        one.variants[FILLED] = assemble(one.checkpoint, compared.device, edit=fill_zeros_)
        if sparse:
            halved = assemble(one.checkpoint, compared.device)
            if halve_linears_(halved, one.checkpoint.family):
                one.variants[HALVED] = halved
    return notes


def _figures(
    name: str, one: Loaded, before: int, workload: Workload, prompts_BT: Tensor, speeds: dict[str, list[Speed]]
) -> ModelFigures:
    """All figures of one model; the first takes `before` bytes."""
    checkpoint, held = one.checkpoint, weight_bytes(one.model)
    per_token = _kv_bytes_per_token(one.model, prompts_BT)
    counts = [layer.num_experts for layer in checkpoint.outlines if layer.is_moe]
    return ModelFigures(
        name=name,
        path=str(checkpoint.path),
        disk_bytes=disk_bytes(checkpoint),
        weight_bytes=held,
        parameters=checkpoint.num_parameters,
        active_parameters=active_parameters(checkpoint),
        num_experts=sum(counts) / max(len(counts), 1),
        zeros=one.zeros,
        formats=storage_formats(one.matrices, checkpoint.num_parameters, checkpoint.dtype.itemsize),
        experts_hit=experts_hit(one.model, checkpoint.family, prompts_BT, workload.batch_sizes),
        kv_bytes_per_token=per_token,
        freed_bytes=before - held,
        freed_tokens=int((before - held) / per_token) if per_token else 0,
        speed=speeds.pop(PLAIN),
        variants=[Variant(variant, of_variant) for variant, of_variant in speeds.items()],
    )


def _kv_bytes_per_token(model: PreTrainedModel, prompts_BT: Tensor) -> float:
    """What the cache grows by with each token; what does not grow, the states of linear attention, is left out."""

    def held(tokens: int) -> int:
        return cache_bytes(cache_behind(model, prompts_BT[:1, :tokens]))

    half = KV_TOKENS // 2
    return (held(KV_TOKENS) - held(half)) / half
