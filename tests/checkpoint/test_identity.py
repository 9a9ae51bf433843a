"""Models are told apart by what is in them, and every tensor is looked at once."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

from stun_exp.checkpoint import identity as module
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.identity import Digests, census_of
from stun_exp.checkpoint.shards import SINGLE
from stun_exp.state.cache import CacheFolder, NoCache, Store
from stun_exp.utils.files import digest_of

NOTHING_KEPT = Store(NoCache(), pytest.fail)


def edited(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The folder, after a change to its weights that leaves sizes and times as they were."""
    about = (folder / SINGLE).stat()
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / SINGLE).items()}
    edit(tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    os.utime(folder / SINGLE, ns=(about.st_atime_ns, about.st_mtime_ns))
    return folder


def identity(folder: Path, store: Store = NOTHING_KEPT) -> dict[str, str]:
    return Checkpoint(folder, None).identity(Digests(store).of)


def test_two_models_of_one_size_and_time_are_two(mixtral_copy: Path, tmp_path: Path) -> None:
    """As after tar, in an image, or after cp -p: it was by size and time that they were told apart."""
    other = Path(copytree(mixtral_copy, tmp_path / "other"))
    assert identity(mixtral_copy) == identity(other)
    edited(other, lambda tensors: tensors["lm_head.weight"].mul_(2))
    first, second = (folder / SINGLE for folder in (mixtral_copy, other))
    assert (first.stat().st_size, first.stat().st_mtime_ns) == (second.stat().st_size, second.stat().st_mtime_ns)
    assert identity(mixtral_copy) != identity(other)


def test_weights_in_a_subfolder_count(mixtral_copy: Path) -> None:
    """Those that the index names there."""
    (mixtral_copy / "deep").mkdir()
    (mixtral_copy / SINGLE).rename(mixtral_copy / "deep" / "w.safetensors")
    keys = load_file(mixtral_copy / "deep" / "w.safetensors")
    index = {"weight_map": dict.fromkeys(keys, "deep/w.safetensors")}
    (mixtral_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "deep/w.safetensors" in identity(mixtral_copy)


def test_a_file_is_read_once_for_as_long_as_it_is_what_it_was(
    mixtral_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written to, replaced, or with its times put back, it is read again."""
    monkeypatch.setattr(module, "SETTLED", -1e9)  # as if all had been left alone for long
    store, read = Store(CacheFolder(path=str(tmp_path / "cache"), max_entry_gb=1.0), pytest.fail), list[Path]()
    monkeypatch.setattr(module, "digest_of", lambda file: (read.append(file), digest_of(file))[1])
    weights = mixtral_copy / SINGLE
    first = Digests(store).of(weights)
    assert Digests(store).of(weights) == first == digest_of(weights)
    assert read == [weights]
    edited(mixtral_copy, lambda tensors: tensors["lm_head.weight"].mul_(2))
    second = Digests(store).of(weights)
    assert second == digest_of(weights) != first
    about = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert Digests(store).of(weights) not in (first, second)


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written again within a tick of the disk's clock it would look the same."""
    store = Store(CacheFolder(path=str(tmp_path / "cache"), max_entry_gb=1.0), pytest.fail)
    (tmp_path / "x").write_text("1")
    Digests(store).of(tmp_path / "x")
    assert not (tmp_path / "cache").exists()


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
        census_of(checkpoint, {}, NOTHING_KEPT)


def test_a_number_too_large_for_the_precision_is_found(mixtral_copy: Path) -> None:
    folder = edited(mixtral_copy, lambda tensors: tensors["lm_head.weight"].fill_(1e5))
    census_of(Checkpoint(folder, torch.bfloat16), {}, NOTHING_KEPT)
    with pytest.raises(ValueError, match=r"read in float16"):
        census_of(Checkpoint(folder, torch.float16), {}, NOTHING_KEPT)


def test_zeros_are_counted_where_they_are(mixtral_copy: Path) -> None:
    def zero(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"].view(-1)[:7] = 0  # down
        tensors["model.layers.1.block_sparse_moe.experts.3.w3.weight"].view(-1)[:5] = 0  # up
        tensors["model.layers.1.self_attn.q_proj.weight"].view(-1)[:3] = 0
        tensors["model.layers.1.input_layernorm.weight"][:2] = 0
        tensors["lm_head.weight"][0] = 0

    census = census_of(Checkpoint(edited(mixtral_copy, zero), None), {}, NOTHING_KEPT)
    assert {name: zeros for name, zeros in census.layers[1].matrices.items() if zeros} == {
        "mlp.experts.3.down_proj": 7,
        "mlp.experts.3.up_proj": 5,
        "self_attn.q_proj": 3,
    }
    assert (census.layers[1].others, census.outside, census.layers[0].others) == (2, 16, 0)


def test_a_model_is_looked_through_once_for_all_runs(mixtral: Checkpoint, tmp_path: Path) -> None:
    store = Store(CacheFolder(path=str(tmp_path), max_entry_gb=1.0), pytest.fail)
    of = {"model": "x"}
    first = census_of(mixtral, of, store)
    gone = Checkpoint(mixtral.path, None)
    gone.read_layer = lambda *_: pytest.fail("it was read again")  # type: ignore[method-assign]
    assert census_of(gone, of, store) == first


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
