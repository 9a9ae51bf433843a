"""Every tensor is looked at once: for numbers that are not finite, and for zeros."""

import json
from pathlib import Path

import pytest
import torch
from edited_weights import edited

from stun_exp.checkpoint.census import census_of
from stun_exp.checkpoint.checkpoint import Checkpoint


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "key",
    [
        "lm_head.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
        "model.layers.1.block_sparse_moe.gate.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.2.block_sparse_moe.experts.3.w2.weight",
    ],
)
def test_a_number_that_is_none_is_found_wherever_it_is(mixtral_copy: Path, key: str, number: float) -> None:
    """Also outside the experts, where accuracies were printed."""

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key].view(-1)[5] = number

    checkpoint = Checkpoint(edited(mixtral_copy, spoil), None)
    where = f"layer {key.split('.')[2]}'s " if ".layers." in key else key
    with pytest.raises(ValueError, match=rf"{where}.* holds NaN or infinity \(read in float32\)"):
        census_of(checkpoint)


def test_a_number_too_large_for_the_precision_is_found(mixtral_copy: Path) -> None:
    folder = edited(mixtral_copy, lambda tensors: tensors["lm_head.weight"].fill_(1e5))
    census_of(Checkpoint(folder, torch.bfloat16))
    with pytest.raises(ValueError, match=r"read in float16"):
        census_of(Checkpoint(folder, torch.float16))


def test_zeros_are_counted_where_they_are(mixtral_copy: Path) -> None:
    def zero(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"].view(-1)[:7] = 0  # down
        tensors["model.layers.1.block_sparse_moe.experts.3.w3.weight"].view(-1)[:5] = 0  # up
        tensors["model.layers.1.self_attn.q_proj.weight"].view(-1)[:3] = 0
        tensors["model.layers.1.input_layernorm.weight"][:2] = 0
        tensors["lm_head.weight"][0] = 0

    census = census_of(Checkpoint(edited(mixtral_copy, zero), None))
    assert {name: zeros for name, zeros in census.layers[1].matrices.items() if zeros} == {
        "mlp.experts.3.down_proj": 7,
        "mlp.experts.3.up_proj": 5,
        "self_attn.q_proj": 3,
    }
    assert (census.layers[1].others, census.outside, census.layers[0].others) == (2, 16, 0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_in_the_place_of_weights_are_refused(mixtral_copy: Path, dtype: torch.dtype) -> None:
    key = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    edited(mixtral_copy, lambda tensors: tensors.update({key: tensors[key].to(dtype)}))
    with pytest.raises(ValueError, match=r"experts\.3\.w2\.weight is .* on disk, without scales"):
        Checkpoint(mixtral_copy, None)


@pytest.mark.parametrize("equal", [False, True])
def test_a_tied_head_that_is_another_is_refused(mixtral_copy: Path, equal: bool) -> None:
    """Transformers leaves the two apart; tied, as config.json says, they would be another model."""
    config = json.loads((mixtral_copy / "config.json").read_text()) | {"tie_word_embeddings": True}
    (mixtral_copy / "config.json").write_text(json.dumps(config))
    if equal:
        edited(mixtral_copy, lambda tensors: tensors["lm_head.weight"].copy_(tensors["model.embed_tokens.weight"]))
        Checkpoint(mixtral_copy, None)
    else:
        with pytest.raises(
            ValueError, match=r"lm_head\.weight and model\.embed_tokens\.weight are both on disk and differ"
        ):
            Checkpoint(mixtral_copy, None)
