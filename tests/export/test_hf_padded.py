"""Layers filled with experts that are never chosen: the logits stay, and stock transformers loads the folder."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from stun_exp.checkpoint.architecture import Architecture
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.export.hf_padded import HfPaddedExport
from stun_exp.export.protocol import Pruned
from stun_exp.moe.families import DENSE, FAMILIES
from stun_exp.moe.plan import Plan, keep

Make = Callable[..., Pruned]
CPU = torch.device("cpu")
FOUR = [0, 2, 3, 5]
"""Two of each group of three, for the routers that choose among groups."""
ALLOWED = ["deepseek_v3", "dots1", "glm4_moe", "gpt_oss"]
NOT_IN_STOCK = ["arctic", "nllb-moe"]


@pytest.fixture
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof in a fresh process takes seconds for each family; here the stock model is loaded in this one."""

    def prove(written: Checkpoint, device: torch.device, trust_remote_code: bool, *text: object) -> dict[str, bool]:
        assert not trust_remote_code
        return {}

    monkeypatch.setattr("stun_exp.export.proof.prove", prove)


def logits(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    more = {"decoder_input_ids": tokens_BT} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        return model.eval()(tokens_BT, **more).logits


@pytest.mark.usefixtures("without_processes")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ALLOWED)
def test_the_filled_model_gives_the_logits_of_the_unequal_one(
    name: str, dtype: torch.dtype | None, make_pruned: Make, tokens_BT: Tensor
) -> None:
    pruned = make_pruned(name, {2: FOUR}, dtype=dtype)
    HfPaddedExport(vllm_python=None).check(pruned.source, 0.25, False)
    HfPaddedExport(vllm_python=None).check_plan(pruned.source, pruned.plan)
    expected = logits(load_checkpoint(pruned.folder, CPU), tokens_BT)
    before = sum(shard.size for shard in pruned.writer.shards.values())
    result = HfPaddedExport(vllm_python=None).export(pruned)
    written = Checkpoint(pruned.folder, None)
    assert {layer.num_experts for layer in written.outlines if layer.is_moe} == {6} == {result["num_experts"]}
    assert written.experts_per_layer is None
    added = 2 * sum(
        tensor.nbytes // 6
        for tensor in (*written.outline(2).expert_tensors().values(), *written.outline(2).router_tensors().values())
    )
    assert result["padding"] == {"experts": 2, "bytes": added, "unpadded_bytes": before}
    assert result["expert_parallel_sizes"] == [1, 2, 3, 6]
    assert "filled with 2 experts of zeros" in result["notes"][0]
    json.dumps(result)
    # Weights that lie elsewhere in memory, and routers of more rows, may take other kernels.
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype is None else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(logits(load_checkpoint(pruned.folder, CPU), tokens_BT), expected, **close)
    stock = AutoModelForCausalLM.from_pretrained(pruned.folder, dtype="auto", trust_remote_code=False)
    torch.testing.assert_close(logits(stock, tokens_BT), expected, **close)
    assert (pruned.folder / pruned.writer.replaced[0]).is_file()
    assert stock.generate(tokens_BT[:1, :4], max_new_tokens=3, do_sample=False, eos_token_id=None).shape == (1, 7)


@pytest.mark.usefixtures("without_processes")
def test_a_bias_that_a_config_asks_for_counts(
    tiny_model: Callable[[str], Path], make_pruned: Make, tokens_BT: Tensor, tmp_path: Path
) -> None:
    """Switch Transformers: none by default, so that filling is refused, and one by router_bias."""
    folder = Path(copytree(tiny_model("switch_transformers"), tmp_path / "biased"))
    tensors = load_file(folder / "model.safetensors")
    routers = {key: tensor for key, tensor in tensors.items() if key.endswith("router.classifier.weight")}
    assert routers
    tensors |= {key.replace("weight", "bias"): tensor[:, 0].clone() for key, tensor in routers.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"router_bias": True}
    (folder / "config.json").write_text(json.dumps(config))
    pruned = make_pruned(folder, {3: FOUR})
    HfPaddedExport(vllm_python=None).check(pruned.source, 0.25, False)
    expected = logits(load_checkpoint(pruned.folder, CPU), tokens_BT)
    assert HfPaddedExport(vllm_python=None).export(pruned)["padding"]["experts"] == 2
    stock = AutoModelForSeq2SeqLM.from_pretrained(pruned.folder)
    # A router of more rows may take another kernel, which differs in the last digits.
    torch.testing.assert_close(logits(stock, tokens_BT), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="export=hf_padded: the router of switch_transformers"):
        HfPaddedExport(vllm_python=None).check(Architecture(tiny_model("switch_transformers")), 0.25, False)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in (*ALLOWED, *NOT_IN_STOCK, *DENSE)])
def test_a_router_that_cannot_refuse_is_one_line(name: str, tiny_model: Callable[[str], Path]) -> None:
    """Before pruning, and once more for a plan that turns out unequal; equal layers need no filling."""
    source = Architecture(tiny_model(name))
    moe = [layer.index for layer in source.outlines if layer.is_moe]
    unequal = Plan([keep(moe[0], 6, FOUR), *(keep(index, 6, range(6)) for index in moe[1:])])
    why = "softmax over all experts" if name == "ernie4_5_moe" else "has no bias and no score correction"
    for refuse in (
        lambda: HfPaddedExport(vllm_python=None).check(source, 0.25, False),
        lambda: HfPaddedExport(vllm_python=None).check_plan(source, unequal),
    ):
        with pytest.raises(ValueError, match=rf"router of {name} .*{why}.*expert_pruner\.budget=per_layer") as error:
            refuse()
        assert "\n" not in str(error.value)
    HfPaddedExport(vllm_python=None).check(source, 0.25, True)
    HfPaddedExport(vllm_python=None).check_plan(source, Plan([keep(index, 6, FOUR) for index in moe]))


@pytest.mark.parametrize("name", NOT_IN_STOCK)
def test_what_stock_transformers_cannot_run_is_refused(name: str, tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=r"export=hf_padded: .*; pass export=none"):
        HfPaddedExport(vllm_python=None).check(Architecture(tiny_model(name)), 0.25, True)


@pytest.mark.usefixtures("without_processes")
def test_equal_layers_stay_as_they_are(make_pruned: Make) -> None:
    pruned = make_pruned("mixtral", dict.fromkeys(range(3), FOUR))
    result = HfPaddedExport(vllm_python=None).export(pruned)
    assert result["padding"]["experts"] == result["padding"]["bytes"] == 0
    assert (result["notes"], pruned.writer.replaced) == ([], [])


@pytest.mark.slow
def test_a_fresh_process_loads_it(make_pruned: Make) -> None:
    result = HfPaddedExport(vllm_python=None).export(make_pruned("glm4_moe", {2: FOUR}))
    assert result["loads_with"].endswith("AutoModelForCausalLM.from_pretrained(DIR)")
    assert 0 <= result["max_logit_difference"] <= result["tolerance"] < 0.1


@pytest.mark.slow
def test_a_run_that_is_stopped_behind_its_export_prunes_no_layer_again(
    runner: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the filled layers it could not go on: the unequal ones stay beside them until the run is over."""
    overrides = ("expert_pruner.ratio=0.167", "export=hf_padded")
    folder = tmp_path / "run" / "checkpoint"
    with monkeypatch.context() as patch:

        def stop(*args: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("stun_exp.pipeline.run.evaluate_pruned", stop)
        with pytest.raises(KeyboardInterrupt):
            runner(*overrides, family="glm4_moe")
    assert len(list(folder.glob("model-*"))) == 4
    (filled,) = folder.glob("padded-*")
    content = filled.read_bytes()
    pruned: list[int] = []
    monkeypatch.setattr(CheckpointWriter, "write_layer", lambda writer, layer: pruned.append(layer.index))
    runner(*overrides, family="glm4_moe")
    assert pruned == []
    assert filled.read_bytes() == content
    assert len(list(folder.glob("*.safetensors"))) == 4


@pytest.mark.slow
def test_a_run_leaves_the_filled_layers_alone(
    runner: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file of the unequal ones is left, the card says what fills the layers, and vLLM need not run unequal ones."""
    checked: list[tuple[object, ...]] = []
    monkeypatch.setattr("stun_exp.pipeline.plan_files.check_backend", lambda *given: checked.append(given))
    report = runner("expert_pruner.ratio=0.167", "export=hf_padded", family="glm4_moe")
    assert len(set(report["experts"]["after"])) == 2
    assert checked[0][-1] == ()
    folder = tmp_path / "run" / "checkpoint"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert {file.name for file in folder.glob("*.safetensors")} == set(index["weight_map"].values())
    assert any(name.startswith("padded-") for name in index["weight_map"].values())
    assert report["model"]["params_after"] == Checkpoint(folder, None).num_parameters
    assert "experts of zeros that the router never chooses" in (folder / "README.md").read_text()
