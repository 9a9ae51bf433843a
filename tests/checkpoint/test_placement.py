"""A model spread over devices gives the logits of the whole one; which part goes where is worked out without weights.

There is no GPU here. `GPU` is the CPU under a name that accelerate does not know as the host's, so that all it does for
a layer in host memory happens: the weights are taken away, brought back for each run and taken away again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import compute_module_sizes
from torch import Tensor, nn
from transformers import PreTrainedModel

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.checkpoint.nf4 import memory
from stun_exp.checkpoint.placement import FOR_WEIGHTS, find_places, free_memory, place_of
from stun_exp.moe.families import FAMILIES
from stun_exp.moe.layers import layers_of

CPU = GPU = torch.device("cpu")
HOST = "cpu"
PLENTY = 10**9


def spread(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything on the GPU but the layers after the first, which are in host memory."""
    places: dict[str, Any] = {}

    def put(module: nn.Module, name: str) -> None:
        inside = [path for path in checkpoint.paths if f"{path}.".startswith(f"{name}." if name else "")]
        if not inside or inside == [name]:
            places[name] = HOST if name in checkpoint.paths[1:] else GPU
            return
        for child, part in module.named_children():
            put(part, f"{name}.{child}" if name else child)

    put(checkpoint.skeleton, "")
    return places


def inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    tokens_BT = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens_BT} | (
        {"decoder_input_ids": tokens_BT[:, :5]} if model.config.is_encoder_decoder else {}
    )


@torch.inference_mode()
def logits(model: PreTrainedModel) -> Tensor:
    return model(**inputs(model)).logits


@torch.inference_mode()
def generated(model: PreTrainedModel) -> Tensor:
    return model.generate(inputs(model)["input_ids"], max_new_tokens=4, do_sample=False)


def empty_layers(model: PreTrainedModel, checkpoint: Checkpoint) -> list[bool]:
    layers = layers_of(model, checkpoint.family)
    return [all(tensor.is_meta for tensor in layer.module.parameters()) for layer in layers]


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_in_host_memory_give_the_same_logits(name: str, tiny_model: Callable[[str], Path]) -> None:
    """Of every family: a layer that uses a part's weight without calling the part would meet an empty one."""
    checkpoint = Checkpoint(tiny_model(name), None)
    whole = load_checkpoint(checkpoint.path, CPU)
    parted = load_checkpoint(checkpoint.path, CPU, places=spread(checkpoint))
    assert empty_layers(parted, checkpoint) == [False] + [True] * (checkpoint.num_layers - 1)
    for _ in range(2):  # once more after the layers were emptied again
        # Weights that lie elsewhere in memory may take other kernels, which differ in the last digits.
        torch.testing.assert_close(logits(parted), logits(whole), rtol=1e-5, atol=1e-5)
    assert empty_layers(parted, checkpoint) == [False] + [True] * (checkpoint.num_layers - 1)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_next", "switch_transformers"])
def test_so_do_layers_in_4_bits_and_text_is_generated(name: str, tiny_model: Callable[[str], Path]) -> None:
    """Guards against scales, which are buffers, that stay behind; `memory` counts the layers that are empty too."""
    checkpoint = Checkpoint(tiny_model(name), None)
    whole = load_checkpoint(checkpoint.path, CPU, nf4=True)
    parted = load_checkpoint(checkpoint.path, CPU, nf4=True, places=spread(checkpoint))
    scales = [name for name, buffer in parted.named_buffers() if "absmax" in name and buffer.is_meta]
    assert scales
    # Weights that lie elsewhere in memory may take other kernels, which differ in the last digits.
    torch.testing.assert_close(logits(parted), logits(whole), rtol=1e-5, atol=1e-5)
    assert torch.equal(generated(parted), generated(whole))
    held, outlines = (layers_of(model, checkpoint.family) for model in (parted, checkpoint.skeleton))
    assert memory(held, outlines) == memory(layers_of(whole, checkpoint.family), outlines)


def test_layers_are_pruned_ones_of_different_sizes(mixtral: Checkpoint, write_regrouped: Callable[..., Any]) -> None:
    written = write_regrouped(mixtral, {0: [[0], [1], [2]], 2: [[e] for e in range(5)]})
    parted = load_checkpoint(written.path, CPU, places=spread(written))
    # Weights that lie elsewhere in memory may take other kernels, which differ in the last digits.
    torch.testing.assert_close(logits(parted), logits(load_checkpoint(written.path, CPU)), rtol=1e-5, atol=1e-5)


def sizes(checkpoint: Checkpoint) -> tuple[int, int]:
    """Bytes of the model, and of its last layer."""
    found = compute_module_sizes(checkpoint.skeleton)
    return found[""], found[checkpoint.paths[-1]]


def test_a_model_that_fits_goes_to_one_gpu(mixtral: Checkpoint) -> None:
    assert find_places(mixtral, False, {0: PLENTY, HOST: PLENTY}) == {"": 0}


def test_gpus_share_and_layers_stay_whole(family: str, tiny_model: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint(tiny_model(family), None)
    places = find_places(checkpoint, False, {0: PLENTY, 1: PLENTY, HOST: PLENTY})
    assert set(places.values()) == {0, 1}
    assert not [name for name in places for path in checkpoint.paths if name.startswith(f"{path}.")]
    devices = [place_of(path, places) for path in checkpoint.paths]
    assert devices == sorted(devices)
    for name in checkpoint.skeleton.state_dict():
        assert place_of(name, places) in (0, 1)


def test_host_memory_takes_what_a_gpu_cannot(mixtral: Checkpoint) -> None:
    """By hand: the GPU keeps room for one more layer, so of three it holds two when it has room for three."""
    whole, layer = sizes(mixtral)
    embeddings = head = 64 * 16 * 4
    room = whole - head - 16 * 4 - 1  # lacks a byte for the final norm, were all of it for use
    places = find_places(mixtral, False, {0: room, HOST: PLENTY})
    assert embeddings + 3 * layer <= room < embeddings + 4 * layer
    assert [place_of(path, places) for path in mixtral.paths] == [0, 0, HOST]
    assert place_of("model.embed_tokens.weight", places) == 0
    assert place_of("lm_head.weight", places) == HOST


def test_4_bits_are_counted_as_they_will_be_held(mixtral: Checkpoint) -> None:
    """A GPU with room for half of the fp32 weights takes all of them in 4 bits, which are a seventh."""
    whole, _ = sizes(mixtral)
    assert HOST in find_places(mixtral, False, {0: whole // 2, HOST: PLENTY}).values()
    assert find_places(mixtral, True, {0: whole // 2, HOST: PLENTY}) == {"": 0}
    assert not [name for name, _ in mixtral.skeleton.named_parameters() if "parametrizations" in name]


def test_tied_embeddings_stay_together(tiny_model: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint(tiny_model("switch_transformers"), None)
    places = find_places(checkpoint, False, {0: PLENTY, 1: PLENTY, HOST: PLENTY})
    ends = ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    assert {place_of(name, places) for name in ends} == {0}


@pytest.mark.parametrize(("gpu", "host"), [(0.6, 0.01), (0.1, 10)])
def test_too_little_memory_is_told_with_all_sizes(mixtral: Checkpoint, gpu: float, host: float) -> None:
    """Not the disk, which is too slow to measure from; nor host memory for the embeddings, where the inputs go."""
    whole, _ = sizes(mixtral)
    free = {0: int(gpu * whole), HOST: int(host * whole)}
    with pytest.raises(ValueError, match=r"=auto: the weights take .* GB .*GPU 0 .* GB, host .* GB.*load=nf4"):
        find_places(mixtral, False, free)


def test_a_tenth_of_free_memory_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: {0: 1000, 1: 10, HOST: 500})
    assert FOR_WEIGHTS == 0.9
    assert free_memory() == {0: 900, 1: 9, HOST: 450}
