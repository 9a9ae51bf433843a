"""What is written is what was pruned, and loads; what cannot be read is refused by name."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.checkpoint.shards import INDEX
from stun_exp.checkpoint.writer import CheckpointWriter

Groups = list[list[int]]
Write = Callable[[Checkpoint, dict[int, Groups]], Checkpoint]
CPU = torch.device("cpu")
FOUR: Groups = [[0], [2, 3], [4], [5]]
THREE: Groups = [[1], [3], [5]]


def logits(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.eval()(tokens_BT).logits


def tensors(path: Path) -> dict[str, Tensor]:
    found = {key: tensor for file in sorted(path.glob("*.safetensors")) for key, tensor in load_file(file).items()}
    assert found
    return found


def in_memory(checkpoint: Checkpoint, groups: dict[int, Groups]) -> PreTrainedModel:
    """The pruned model, never written."""
    model = checkpoint.read_shell()
    for index in range(checkpoint.num_layers):
        layer = checkpoint.read_layer(index)
        if index in groups:
            layer.regroup(groups[index])
        model.set_submodule(checkpoint.paths[index], layer.module)
    return model


def moe_indices(checkpoint: Checkpoint) -> list[int]:
    return [index for index in range(checkpoint.num_layers) if checkpoint.outline(index).is_moe]


def set_config(path: Path, **values: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | values))


def count_key(config: dict[str, Any]) -> str:
    """The key of the expert count; where it stands in both spellings, they must say the same."""
    keys = sorted({"num_experts", "num_local_experts"} & config.keys(), reverse=True)
    assert len({config[key] for key in keys}) == 1
    return keys[-1] if len(keys) == 1 else "num_local_experts"


def without(path: Path, key: str) -> None:
    kept = load_file(path / "model.safetensors")
    del kept[key]
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})


def split_into_shards(path: Path) -> None:
    """The same weights in three files, an expert's matrices and a layer spread over all of them."""
    whole = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    files = {f"model-{number:05d}-of-00003.safetensors": sorted(whole)[number - 1 :: 3] for number in (1, 2, 3)}
    for file, keys in files.items():
        save_file({key: whole[key] for key in keys}, path / file, metadata={"format": "pt"})
    weight_map = {key: file for file, keys in files.items() for key in keys}
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


# --- what is read


def test_reading_layer_by_layer_is_reading_the_whole_model(checkpoint: Checkpoint) -> None:
    whole = AutoModelForCausalLM.from_pretrained(checkpoint.path).state_dict()
    for index in range(checkpoint.num_layers):
        for name, tensor in checkpoint.read_layer(index).module.state_dict().items():
            assert torch.equal(tensor, whole[f"model.layers.{index}.{name}"]), name


def test_experts_are_read_in_numeric_order(mixtral: Checkpoint, tmp_path: Path) -> None:
    """From ten experts on, the order of key names puts expert 10 before expert 2."""
    config = AutoConfig.from_pretrained(mixtral.path)
    config.num_local_experts = 12
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "twelve")
    layer = Checkpoint(tmp_path / "twelve", None).read_layer(1)
    assert torch.equal(layer.experts.down_proj, model.model.layers[1].mlp.experts.down_proj)


def test_each_read_is_a_fresh_copy(mixtral: Checkpoint) -> None:
    first = mixtral.read_layer(0)
    first.experts.down_proj.zero_()
    assert bool(mixtral.read_layer(0).experts.down_proj.any())


def test_a_source_in_several_shards_reads_the_same(mixtral: Checkpoint, mixtral_copy: Path) -> None:
    split_into_shards(mixtral_copy)
    sharded = Checkpoint(mixtral_copy, None)
    for index in range(3):
        expected = mixtral.read_layer(index).module.state_dict()
        assert all(torch.equal(t, expected[n]) for n, t in sharded.read_layer(index).module.state_dict().items())


def test_a_dtype_that_is_asked_for_is_what_is_read(mixtral: Checkpoint) -> None:
    layer = Checkpoint(mixtral.path, torch.bfloat16).read_layer(0)
    assert {parameter.dtype for parameter in layer.module.parameters()} == {torch.bfloat16}


def test_layers_beyond_the_architecture_are_named_and_copied(
    mixtral: Checkpoint, mixtral_copy: Path, write_regrouped: Write
) -> None:
    """Multi-token-prediction layers are on disk but never run: they must not get lost."""
    set_config(mixtral_copy, num_hidden_layers=2)
    shorter = Checkpoint(mixtral_copy, None)
    assert (shorter.num_layers, list(shorter.keys.unused), mixtral.keys.unused) == (2, ["model.layers.2"], {})
    assert tensors(write_regrouped(shorter, {}).path).keys() == tensors(mixtral.path).keys()


# --- what is written


def test_equal_counts_load_through_stock_transformers(
    checkpoint: Checkpoint, write_regrouped: Write, tokens_BT: Tensor
) -> None:
    groups = dict.fromkeys(moe_indices(checkpoint), FOUR)
    written = write_regrouped(checkpoint, groups)
    expected = logits(in_memory(checkpoint, groups), tokens_BT)
    stock = AutoModelForCausalLM.from_pretrained(written.path)
    # Weights that lie elsewhere in memory may take other kernels, which differ in the last digits.
    torch.testing.assert_close(logits(stock, tokens_BT), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(load_checkpoint(written.path, CPU), tokens_BT), expected, rtol=1e-5, atol=1e-5)


def test_unequal_counts_load_through_load_pruned(
    checkpoint: Checkpoint, write_regrouped: Write, tokens_BT: Tensor
) -> None:
    groups = {2: THREE, 1: FOUR}
    written = write_regrouped(checkpoint, groups)
    expected = logits(in_memory(checkpoint, groups), tokens_BT)
    # Weights that lie elsewhere in memory may take other kernels, which differ in the last digits.
    torch.testing.assert_close(logits(load_checkpoint(written.path, CPU), tokens_BT), expected, rtol=1e-5, atol=1e-5)


def test_unequal_counts_are_refused_by_stock_transformers(checkpoint: Checkpoint, write_regrouped: Write) -> None:
    """It has no setting for them; the trap is a model of other shapes, filled up with random weights."""
    written = write_regrouped(checkpoint, {2: THREE, 1: FOUR})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(written.path)


def test_a_written_checkpoint_can_be_pruned_again(
    checkpoint: Checkpoint, write_regrouped: Write, tokens_BT: Tensor
) -> None:
    """From unequal to equal counts: the list in the config goes, the number comes."""
    unequal = write_regrouped(checkpoint, {2: FOUR})
    then = dict.fromkeys(moe_indices(checkpoint), THREE[:2]) | {2: [[0], [3]]}
    equal = write_regrouped(unequal, then)
    config = json.loads((equal.path / "config.json").read_text())
    assert config[count_key(config)] == 2
    assert "experts_per_layer" not in config
    at_once = dict.fromkeys(moe_indices(checkpoint), THREE[:2]) | {2: [[0], [5]]}
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(equal.path), tokens_BT),
        logits(in_memory(checkpoint, at_once), tokens_BT),
    )


def test_nothing_pruned_is_bit_equal_under_the_same_keys(checkpoint: Checkpoint, write_regrouped: Write) -> None:
    source, written = tensors(checkpoint.path), tensors(write_regrouped(checkpoint, {}).path)
    assert written.keys() == source.keys()
    assert all(torch.equal(written[key], source[key]) for key in source)


def test_untouched_tensors_are_bit_equal_and_experts_keep_their_keys(
    checkpoint: Checkpoint, write_regrouped: Write
) -> None:
    """Expert 5 becomes expert 2 of layer 2; nothing but that layer's experts and router differs."""
    source, written = tensors(checkpoint.path), tensors(write_regrouped(checkpoint, {2: THREE}).path)
    changed = {key for key in source if key not in written or not torch.equal(source[key], written[key])}
    assert all(".layers.2." in key and (".experts." in key or ".gate." in key) for key in changed)
    moved = [key for key in source if ".layers.2." in key and ".experts.5." in key]
    assert len(moved) == 3
    assert all(torch.equal(written[key.replace("experts.5", "experts.2")], source[key]) for key in moved)
    assert not any(".layers.2." in key and f".experts.{e}." in key for key in written for e in (3, 4, 5))


def test_dtype_is_kept(mixtral: Checkpoint, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """A bf16 source stays bf16, on disk and in the config, and so does what transformers loads."""
    AutoModelForCausalLM.from_pretrained(mixtral.path, dtype=torch.bfloat16).save_pretrained(tmp_path / "bf16")
    source = Checkpoint(tmp_path / "bf16", None)
    assert source.dtype == torch.bfloat16
    writer = CheckpointWriter(source, tmp_path / "written")
    for index in range(source.num_layers):
        writer.write_layer(source.read_layer(index))
    writer.finish()
    assert {tensor.dtype for tensor in tensors(writer.path).values()} == {torch.bfloat16}
    assert load_checkpoint(writer.path, CPU).dtype == torch.bfloat16


def test_config_has_the_new_count_and_keeps_the_rest(checkpoint: Checkpoint, write_regrouped: Write) -> None:
    written = write_regrouped(checkpoint, dict.fromkeys(moe_indices(checkpoint), THREE))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (checkpoint.path, written.path))
    key = count_key(before)
    assert (before[key], after[key]) == (6, 3)
    assert count_key(after) == key
    assert "experts_per_layer" not in after
    assert after["output_router_logits"] is False
    # Older readers' spellings are added: of the dtype, of the rotary embedding, and of Qwen3-MoE's count.
    ignored = {key, "output_router_logits", "torch_dtype", "rope_theta", "rope_scaling", "num_experts"}
    assert {k: v for k, v in before.items() if k not in ignored} == {k: v for k, v in after.items() if k not in ignored}


def test_the_count_keeps_the_spelling_of_the_source(
    tiny_model: Callable[[str], Path], tmp_path: Path, write_regrouped: Write
) -> None:
    """Qwen3-MoE says num_experts on the hub, and num_local_experts once transformers 5 has saved it.

    Written under the other name, both would stand there, and the old count would win.
    """
    hub = Path(copytree(tiny_model("qwen3_moe"), tmp_path / "hub"))
    config = json.loads((hub / "config.json").read_text())
    config["num_experts"] = config.pop("num_local_experts")
    (hub / "config.json").write_text(json.dumps(config))
    written = write_regrouped(Checkpoint(hub, None), dict.fromkeys(range(3), THREE))
    assert count_key(json.loads((written.path / "config.json").read_text())) == "num_experts"
    assert AutoModelForCausalLM.from_pretrained(written.path).config.num_experts == 3


def test_config_lists_unequal_counts_dense_layers_as_zero(checkpoint: Checkpoint, write_regrouped: Write) -> None:
    written = write_regrouped(checkpoint, {2: THREE})
    counts = json.loads((written.path / "config.json").read_text())["experts_per_layer"]
    assert counts == [6 if checkpoint.outline(0).is_moe else 0, 6, 3]


def test_router_logits_are_switched_off(mixtral_copy: Path, write_regrouped: Write, tokens_BT: Tensor) -> None:
    """A training setting that checkpoints carry: on unequal layers Mixtral's balancing loss would crash."""
    set_config(mixtral_copy, output_router_logits=True)
    written = write_regrouped(Checkpoint(mixtral_copy, None), {1: THREE})
    assert json.loads((written.path / "config.json").read_text())["output_router_logits"] is False
    assert bool(logits(load_checkpoint(written.path, CPU), tokens_BT).isfinite().all())


def test_index_names_every_tensor_and_its_size(mixtral: Checkpoint, write_regrouped: Write) -> None:
    written = write_regrouped(mixtral, {2: THREE}).path
    index = json.loads((written / INDEX).read_text())
    on_disk = tensors(written)
    assert index["weight_map"].keys() == on_disk.keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in on_disk.values())
    assert all(key in load_file(written / file) for key, file in index["weight_map"].items())


def test_tokenizer_and_generation_config_come_along(checkpoint: Checkpoint, write_regrouped: Write) -> None:
    written = write_regrouped(checkpoint, {}).path
    assert AutoTokenizer.from_pretrained(written)("w3 w5")["input_ids"] == [3, 5]
    assert (written / "generation_config.json").is_file()


def test_tied_embeddings_stay_tied(mixtral_copy: Path, write_regrouped: Write, tokens_BT: Tensor) -> None:
    """The head is not on disk then, and must not be missed."""
    without(mixtral_copy, "lm_head.weight")
    set_config(mixtral_copy, tie_word_embeddings=True)
    written = write_regrouped(Checkpoint(mixtral_copy, None), {1: THREE})
    assert "lm_head.weight" not in tensors(written.path)
    model = load_checkpoint(written.path, CPU)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert bool(logits(model, tokens_BT).isfinite().all())


def test_a_full_disk_is_noticed_before_anything_is_written(
    mixtral: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stun_exp.checkpoint.writer.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"checkpoint: the checkpoint needs up to 0.1 MB and 0.0 MB are free"):
        CheckpointWriter(mixtral, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


# --- what is refused


def read_all(path: Path) -> None:
    checkpoint = Checkpoint(path, None)
    checkpoint.read_shell()
    for index in range(checkpoint.num_layers):
        checkpoint.read_layer(index)


def refused(path: Path, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        read_all(path)


def test_no_config(mixtral_copy: Path) -> None:
    (mixtral_copy / "config.json").unlink()
    refused(mixtral_copy, FileNotFoundError, r"copy: no config.json")


@pytest.mark.parametrize("model_type", ["bert", "nonesuch"])
def test_an_unknown_architecture_is_told_the_known_ones(mixtral_copy: Path, model_type: str) -> None:
    """Also one that transformers does not know either, whose own error would send the user to upgrade it."""
    set_config(mixtral_copy, model_type=model_type)
    refused(mixtral_copy, ValueError, f"model_type='{model_type}'.*known: arctic, dbrx, .*switch_transformers")


def test_a_missing_shard_is_named(mixtral_copy: Path) -> None:
    split_into_shards(mixtral_copy)
    (mixtral_copy / "model-00002-of-00003.safetensors").unlink()
    refused(mixtral_copy, FileNotFoundError, "model-00002-of-00003.safetensors.*not there")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_truncated_file_is_named_before_anything_runs(mixtral_copy: Path, sharded: bool) -> None:
    if sharded:
        split_into_shards(mixtral_copy)
    file = sorted(mixtral_copy.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=f"{file.name}: truncated"):
        Checkpoint(mixtral_copy, None)


def test_a_pickle_is_not_read(mixtral_copy: Path) -> None:
    (mixtral_copy / "model.safetensors").rename(mixtral_copy / "pytorch_model.bin")
    refused(mixtral_copy, FileNotFoundError, "only safetensors are read")


def test_an_unknown_quantization_is_refused(mixtral_copy: Path) -> None:
    set_config(mixtral_copy, quantization_config={"quant_method": "gptq"})
    refused(mixtral_copy, ValueError, "gptq")


@pytest.mark.parametrize("count", [4, 8])
def test_another_expert_count_in_the_config(mixtral_copy: Path, count: int) -> None:
    """Fewer in the config would cut experts off in silence, more would leave some random."""
    set_config(mixtral_copy, num_local_experts=count)
    refused(mixtral_copy, ValueError, rf"layer 0 has 6 experts on disk, and config.json says num_local_experts={count}")


@pytest.mark.parametrize(
    ("key", "match"),
    [
        ("model.layers.1.self_attn.q_proj.weight", "layer 1, self_attn.q_proj.weight: on disk missing"),
        ("model.layers.1.block_sparse_moe.experts.3.w2.weight", r"layer 1: .*experts.3.w2.weight is missing \(1 of 6"),
        ("model.layers.1.block_sparse_moe.experts.3.w1.weight", r"layer 1: .*experts.3.w1.weight is missing \(1 of 6"),
        ("lm_head.weight", "no weights on disk for lm_head.weight"),
    ],
)
def test_a_missing_tensor_is_named(mixtral_copy: Path, key: str, match: str) -> None:
    """One expert's gate alone is the trap: five gates and six ups cannot be fused."""
    without(mixtral_copy, key)
    refused(mixtral_copy, ValueError, match)


def with_tensors(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = path / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_an_expert_too_many_is_told(mixtral_copy: Path) -> None:
    """Seven on disk and six in the config: the last would be cut off in silence."""
    prefix = "model.layers.1.block_sparse_moe.experts"
    extra = {f"{prefix}.6.{name}.weight": f"{prefix}.5.{name}.weight" for name in ("w1", "w2", "w3")}
    with_tensors(mixtral_copy, lambda tensors: tensors | {new: tensors[old].clone() for new, old in extra.items()})
    refused(mixtral_copy, ValueError, "layer 1 has 7 experts on disk, and config.json says num_local_experts=6")


def test_half_an_expert_too_many_is_told(mixtral_copy: Path) -> None:
    key = "model.layers.1.block_sparse_moe.experts.6.w1.weight"
    with_tensors(mixtral_copy, lambda tensors: tensors | {key: torch.zeros(24, 16)})
    refused(mixtral_copy, ValueError, r"layer 1: .*experts\.6\.w[23]\.weight is missing \(1 of 7")


def test_a_tensor_that_the_architecture_lacks_is_named(mixtral_copy: Path) -> None:
    """An adapter, say, that loading would leave out without a word."""
    key = "model.layers.2.self_attn.q_proj.lora_A.weight"
    with_tensors(mixtral_copy, lambda tensors: tensors | {key: torch.zeros(2, 2)})
    refused(mixtral_copy, ValueError, f"layer 2, {re.escape(key)}: no such tensor in the architecture")


def test_rotary_tables_of_old_checkpoints_are_passed_over(mixtral: Checkpoint, mixtral_copy: Path) -> None:
    key = "model.layers.0.self_attn.rotary_emb.inv_freq"
    with_tensors(mixtral_copy, lambda tensors: tensors | {key: torch.zeros(2)})
    before, after = (Checkpoint(p, None).read_layer(0).module.state_dict() for p in (mixtral.path, mixtral_copy))
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_mixed_dtypes_are_refused_unless_one_is_asked_for(mixtral_copy: Path) -> None:
    """One expert in another precision: kept "as it is on disk", it would raise its whole layer to that."""
    key = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    with_tensors(mixtral_copy, lambda tensors: tensors | {key: tensors[key].half()})
    match = f"{re.escape(key)} is float16 on disk, and config.json says float32.* pass model.dtype=float32"
    refused(mixtral_copy, ValueError, match)
    layer = Checkpoint(mixtral_copy, torch.bfloat16).read_layer(1)
    assert {parameter.dtype for parameter in layer.module.parameters()} == {torch.bfloat16}


def test_a_dtype_that_is_none_is_refused(mixtral_copy: Path) -> None:
    set_config(mixtral_copy, dtype="bf16")
    refused(mixtral_copy, ValueError, "dtype='bf16' is none")


def test_a_file_that_is_no_safetensors_is_named(mixtral_copy: Path) -> None:
    (mixtral_copy / "model.safetensors").write_bytes(b"PK" + bytes(100))
    refused(mixtral_copy, ValueError, "model.safetensors: truncated or not a safetensors file")


def test_a_checkpoint_is_never_written_over(mixtral: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError):
        CheckpointWriter(mixtral, tmp_path / "out")


def test_an_index_that_names_a_key_its_shard_lacks_is_told(mixtral_copy: Path) -> None:
    key = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    tensors = load_file(mixtral_copy / "model.safetensors")
    weight_map = dict.fromkeys(tensors, "model.safetensors")
    (mixtral_copy / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    del tensors[key]
    save_file(tensors, mixtral_copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"model\.safetensors: {key} is not in it"):
        Checkpoint(mixtral_copy, None).read_layer(0)
