"""Sizes come from config.json and the index, agree with what a run counts, and a wrong index is told at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from stun_exp.checkpoint.architecture import Architecture
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.model import Model
from stun_exp.checkpoint.shards import INDEX
from stun_exp.inspection.sizes import Inspection, inspect_architecture, read_index
from stun_exp.moe.families import FAMILIES
from stun_exp.pipeline.budget import Scope, budget_of

Published = Callable[..., Path]


def look(path: Path) -> Inspection:
    return inspect_architecture(Architecture(path))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_sizes_are_those_that_a_run_counts(checkpoint: Checkpoint) -> None:
    """On every family: totals in each scope, and what goes with the experts."""
    found = inspect_architecture(checkpoint)
    for scope in get_args(Scope):
        budget = budget_of(checkpoint, {}, 0.0, scope, attention=True)
        assert found.in_scope(scope) == budget.in_scope
    counts = [layer.num_experts for layer in checkpoint.outlines]
    assert [layer.num_experts for layer in found.layers] == counts
    one_less = {index: count - 1 for index, count in enumerate(counts) if count}
    removed = budget_of(checkpoint, one_less, 0.5, "model", attention=True).removed
    assert sum(layer.per_expert for layer in found.moe) == removed
    inside = sum(parameter.numel() for layer in checkpoint.outlines for parameter in layer.module.parameters())
    assert found.outside == checkpoint.num_parameters - inside


def test_mixtral_by_hand(published: Published) -> None:
    found = look(published())
    attention, experts = 2 * 4096 * 4096 + 2 * 4096 * 1024, 8 * 3 * 4096 * 14336
    layer = found.layers[0]
    assert (layer.num_experts, layer.top_k, layer.num_groups) == (8, 2, 1)
    assert dict(layer.weights) == {"attention": attention, "expert": experts}
    assert layer.experts.parameters == experts + 8 * 4096  # the router's rows go with them
    assert layer.active == attention + experts // 4 + 2 * 4096 + 2 * 4096  # two experts with their rows, two norms
    assert found.whole.parameters == 46_702_792_704
    assert found.outside == 2 * 32000 * 4096 + 4096
    assert found.in_scope("experts") == 32 * experts
    assert found.in_scope("decoder") == 32 * (attention + experts)
    assert found.disk_bytes == found.whole.bytes("full") == 2 * 46_702_792_704
    # half a byte each, and four for every 64; embeddings, head, routers and norms in 16 bits
    packed = 32 * (attention + experts)
    assert found.whole.bytes("nf4") == packed // 2 + packed // 64 * 4 + 2 * (46_702_792_704 - packed)
    assert layer.experts.bytes("nf4") / layer.experts.bytes("full") < 0.30


def test_layers_of_different_kinds_are_told_apart(tiny_model: Callable[[str], Path]) -> None:
    """Qwen2-MoE: a dense layer and two with a shared expert, which is not among the routed ones."""
    found = look(tiny_model("qwen2_moe"))
    assert [layer.num_experts for layer in found.layers] == [0, 6, 6]
    assert found.layers[0].weights["mlp"] == 3 * 16 * 40
    assert found.layers[1].weights["mlp"] == 3 * 16 * 32
    assert found.layers[1] is found.layers[2]
    assert found.layers[0].active == found.layers[0].all.parameters


def test_no_file_with_weights_is_needed_beside_an_index(published: Published) -> None:
    path = published()
    assert sorted(file.name for file in path.iterdir()) == ["config.json", INDEX]
    assert look(path).whole.parameters == 46_702_792_704


def test_of_a_single_file_the_header_is_read(tiny_model: Callable[[str], Path]) -> None:
    path = tiny_model("mixtral")
    assert not (path / INDEX).exists()
    keys, size = read_index(path)
    assert "lm_head.weight" in keys
    assert size == (path / "model.safetensors").stat().st_size


def test_parts_that_are_not_run_are_named(published: Published) -> None:
    further = ["model.layers.32.eh_proj.weight", "model.layers.32.enorm.weight"]
    assert look(published(plus=further)).unused == {"model.layers.32": 2}


# What is wrong with the folder, and what is said of it.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown family": ({"model_type": "mixtrl"}, r"config\.json: model_type='mixtrl' is not supported; known: arctic"),
    "a missing matrix": (
        {"without": r"layers\.7\..*experts\.3\.w2\."},
        r"layer 7: .*experts\.3\.w2\.weight is missing \(1 of 8 such keys\)",
    ),
    "a missing expert": ({"without": r"layers\.7\..*experts\.3\."}, r"layer 7: .*experts\.3\.w1\.weight is missing"),
    "fewer experts": (
        {"without": r"experts\.[67]\."},
        r"layer 0 has 6 experts on disk, and config\.json says num_local_experts=8",
    ),
    "more experts": (
        {"num_local_experts": 6},
        r"layer 0 has 8 experts on disk, and config\.json says num_local_exp.*=6",
    ),
    "more in one layer": (
        {"plus": [f"model.layers.5.block_sparse_moe.experts.8.w{i}.weight" for i in (1, 2, 3)]},
        r"layer 5 has 9 experts on disk, and config\.json says num_local_experts=8",
    ),
    "no router": ({"without": r"layers\.2\..*gate"}, r"layer 2, .*gate\.weight: on disk missing"),
    "a missing layer": ({"without": r"layers\.31\."}, r"layer 31, .*: on disk missing"),
    "no head": ({"without": "lm_head"}, r"no weights on disk for lm_head\.weight"),
    "an unknown packing": ({"quantization_config": {"quant_method": "aqlm"}}, r"config\.json: .*aqlm.* not supported"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_index_that_is_not_the_architecture_s_is_one_clear_error(what: str, published: Published) -> None:
    wrong, message = WRONG[what]
    folder = published(**wrong)
    with pytest.raises(ValueError, match=message) as error:
        look(folder)
    assert str(error.value).startswith(str(folder))
    assert len(str(error.value).splitlines()) == 1


def test_a_mixture_without_experts_is_a_dense_model(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    raw = json.loads((tiny_model("qwen2_moe") / "config.json").read_text()) | {"mlp_only_layers": [0, 1, 2]}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    names = Architecture(tmp_path).skeleton.state_dict()
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "x")}))
    found = look(tmp_path)
    assert found.moe == []
    assert found.in_scope("experts") == 0
    assert found.in_scope("decoder") == found.whole.matrices


def test_a_missing_or_damaged_index_names_the_file(published: Published) -> None:
    path = published()
    for content in ("{", "[]", '{"weight_map": {}}', '{"metadata": {}}'):
        (path / INDEX).write_text(content)
        with pytest.raises(
            ValueError, match=r"index\.json: (not JSON|no weight_map|must hold a JSON object).*download it again"
        ):
            look(path)
    (path / INDEX).unlink()
    with pytest.raises(FileNotFoundError, match="only safetensors are read"):
        look(path)


def test_an_index_need_not_say_how_large_the_files_are(published: Published) -> None:
    path = published()
    for head in ({}, {"metadata": None}, {"metadata": {}}):
        index = json.loads((path / INDEX).read_text())
        (path / INDEX).write_text(json.dumps({**head, "weight_map": index["weight_map"]}))
        assert look(path).disk_bytes is None


def test_of_a_hub_repository_only_json_is_fetched(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.append({"repository": repository, **options})
        return str(published())

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model = Model(
        path="owner/name",
        revision="abc",
        dtype="auto",
        device="cpu",
        load="full",
        trust_remote_code=False,
        parameters=46_702_792_704,
        expert_ratio=0.1,
        dimensions=None,
    )
    assert inspect_architecture(model.architecture()).whole.parameters == 46_702_792_704
    assert [(call["repository"], call["revision"], call["allow_patterns"]) for call in asked] == [
        ("owner/name", "abc", ["*.json"])
    ]
    with pytest.raises(ValueError, match=r"model\.parameters=5: model\.path=owner/name has 46,702,792,704"):
        model.model_copy(update={"parameters": 5}).architecture()
