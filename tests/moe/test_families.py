"""What must hold for every supported family, each on a tiny random model written as its owners write it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from stun_exp.allocation.ratios import LayerRatios
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.moe.families import DENSE, FAMILIES
from stun_exp.moe.inputs import InputStatistics
from stun_exp.moe.layers import MoELayer
from stun_exp.moe.observe import Statistic, observe
from stun_exp.moe.plan import LayerPlan
from stun_exp.pipeline.prune_layer import prune_layer_
from stun_exp.pipeline.verify import count_written
from stun_exp.pipeline.weight_stage import WeightStage
from stun_exp.streaming.walk import Walk
from stun_exp.unstructured_pruner.wanda import Wanda

CPU = torch.device("cpu")
# Experts in each layer, an encoder's first: the layers without experts are passed over.
LAYERS = {name: [0, 0, 0] if name in DENSE else [6, 6, 6] for name in FAMILIES} | {
    "arctic": [0, 6, 0],
    "deepseek_v2": [0, 6, 6],
    "deepseek_v3": [0, 6, 6],
    "dots1": [0, 6, 6],
    "ernie4_5_moe": [0, 6, 6],
    "glm4_moe": [0, 6, 6],
    "jamba": [6, 0, 6],
    "llama4_text": [0, 6, 6],
    "nllb-moe": [0, 6, 0, 6],
    "qwen2_moe": [0, 6, 6],
    "qwen3_next": [0, 6, 6],
    "switch_transformers": [0, 6, 0, 6],
}
# What pruning never touches, besides vectors: routers, gates, convolutions, tables of positions, a step size.
EXEMPT = re.compile(
    r".*\.(gate|router)\.(weight|wg\.weight|layer\.weight|classifier\.weight|moe_statics\.e_score_correction_bias)"
    r"|.*shared_expert_gate\.weight|.*conv1d\.weight|.*relative_attention_bias\.weight|mamba\.(A_log|dt_proj\.weight)"
    r"|.*experts\.(gate_up|up|down)_proj_bias"
)
KEPT = [0, 2, 3, 5]
"""Two of each group of three, for the routers that choose among groups."""

every_family = pytest.mark.parametrize("name", FAMILIES)
MOE = [name for name in FAMILIES if name not in DENSE]
with_experts = pytest.mark.parametrize("name", MOE)


@pytest.fixture
def source(name: str, tiny_model: Callable[[str], Path]) -> Checkpoint:
    return Checkpoint(tiny_model(name), None)


def inputs(checkpoint: Checkpoint) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(1, 64, (3, 20), generator=generator)
    if not checkpoint.config.is_encoder_decoder:
        return {"input_ids": tokens_BT}
    return {"input_ids": tokens_BT, "decoder_input_ids": torch.randint(1, 64, (3, 12), generator=generator)}


def walk(checkpoint: Checkpoint) -> Walk:
    tokens = inputs(checkpoint)
    targets_BT = [tokens["decoder_input_ids"]] if "decoder_input_ids" in tokens else []
    return Walk(checkpoint, [tokens["input_ids"]], CPU, "test", targets_BT=targets_BT)


def logits(model: PreTrainedModel, checkpoint: Checkpoint) -> Tensor:
    with torch.inference_mode():
        return model.eval()(**inputs(checkpoint)).logits


def stock(path: Path, checkpoint: Checkpoint) -> PreTrainedModel:
    auto = AutoModelForSeq2SeqLM if checkpoint.config.is_encoder_decoder else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_pretrained(path)
    return model


def moe_layers(checkpoint: Checkpoint) -> list[int]:
    return [index for index in range(checkpoint.num_layers) if checkpoint.outline(index).is_moe]


def layer_of(checkpoint: Checkpoint) -> MoELayer:
    return checkpoint.read_layer(moe_layers(checkpoint)[-1])


def block_output(layer: MoELayer, hidden_BTD: Tensor) -> Tensor:
    with torch.inference_mode():
        output = layer.block(hidden_BTD)
    return output[0] if isinstance(output, tuple) else output


@every_family
def test_layers_with_and_without_experts_are_told_apart(name: str, source: Checkpoint) -> None:
    assert [layer.num_experts for layer in source.outlines] == LAYERS[name]


@every_family
def test_the_model_is_the_stock_model(name: str, source: Checkpoint) -> None:
    """Read layer by layer, experts fused by us where transformers does not; its NLLB-MoE routes wrongly (see there)."""
    if name != "nllb-moe":
        difference = logits(load_checkpoint(source.path, CPU), source) - logits(stock(source.path, source), source)
        assert difference.abs().max() < 1e-5


@every_family
def test_in_16_bits_every_tensor_has_the_dtype_that_stock_gives_it(name: str, source: Checkpoint) -> None:
    """Some routers and their biases stay in 32: rounded to 16, a score-correction bias would change the choice."""
    in_bf16 = Checkpoint(source.path, torch.bfloat16)
    auto = AutoModelForSeq2SeqLM if source.config.is_encoder_decoder else AutoModelForCausalLM
    expected = auto.from_pretrained(source.path, dtype=torch.bfloat16).state_dict()
    for index, path in enumerate(in_bf16.paths):
        for tail, tensor in in_bf16.read_layer(index).module.state_dict().items():
            same = expected.get(f"{path}.{tail}")  # experts that we fuse have no counterpart
            assert tensor.dtype == (same.dtype if same is not None else torch.bfloat16), tail
            assert in_bf16.outline(index).module.state_dict()[tail].dtype == tensor.dtype, tail


@every_family
def test_every_parameter_of_a_layer_is_pruned_once_or_exempt(name: str, source: Checkpoint) -> None:
    """The guard against tensors that are skipped in silence, or visited twice."""
    for index in range(source.num_layers):
        layer = source.read_layer(index)
        for parameter in layer.module.parameters():
            parameter.zero_()
        for matrix in layer.matrices():
            matrix.weight_OC.add_(1)
        for path, parameter in layer.module.named_parameters():
            times = 0 if parameter.ndim == 1 or EXEMPT.fullmatch(path) else 1
            assert bool((parameter == times).all()), f"layer {index}, {path}"


class _Count:
    def __init__(self, num_inputs: int) -> None:
        self.num_inputs = num_inputs
        self.num_tokens = 0

    def update(self, x_NC: Tensor, gate_N: Tensor | None = None) -> None:
        assert x_NC.shape[1] == self.num_inputs
        self.num_tokens += len(x_NC)


class _Contributions(Statistic):
    """What the experts' calls add up to, and how many calls each token has."""

    def __init__(self) -> None:
        self.sums_D: Tensor | None = None
        self.calls = 0
        self.outputs_TD: list[Tensor] = []

    def expert(self, expert: int, x_ND: Tensor, h_NF: Tensor, y_ND: Tensor, weight_N: Tensor) -> None:
        part_D = (y_ND * weight_N[:, None]).sum(0)
        self.sums_D = part_D if self.sums_D is None else self.sums_D + part_D
        self.calls += len(x_ND)

    def output(self, y_TD: Tensor) -> None:
        self.outputs_TD.append(y_TD)


@every_family
def test_observed_is_eager_and_every_input_is_seen(name: str, source: Checkpoint) -> None:
    """Streamed and observed, a layer gives what it gives in the whole model, and each matrix's inputs were shown."""
    seen: dict[str, Tensor] = {}
    model = load_checkpoint(source.path, CPU)

    def keep(path: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
            seen[path] = output[0] if isinstance(output, tuple) else output

        return hook

    for path in source.paths:
        model.get_submodule(path).register_forward_hook(keep(path))
    logits(model, source)
    for step in walk(source):
        matrices = list(step.layer.matrices())
        counts = InputStatistics(step.layer, matrices, _Count)
        calls = _Contributions()
        with observe(step.layer, [counts, calls]):
            step.forward()
        assert step.outputs_BTD is not None
        torch.testing.assert_close(step.outputs_BTD[0], seen[source.paths[step.layer.index]], rtol=1e-5, atol=1e-5)
        tokens = step.hidden_BTD[0].shape[:2].numel()
        unseen = [m.feed for m in matrices if m.expert is None and counts.by_feed[m.feed].num_tokens == 0]
        assert not unseen
        if step.layer.is_moe:
            assert calls.calls == tokens * step.layer.top_k
            by_expert = {m.feed: counts.by_feed[m.feed].num_tokens for m in matrices if m.feed.endswith(".in")}
            assert sum(by_expert.values()) == calls.calls
            torch.testing.assert_close(calls.sums_D, torch.cat(calls.outputs_TD).sum(0), rtol=1e-4, atol=1e-4)


@with_experts
def test_pruned_equals_router_masked(name: str, source: Checkpoint) -> None:
    """Cutting experts out is a router that never chooses them; biases of the choice go with their expert."""
    pruned, masked = layer_of(source), layer_of(source)
    gone = [expert for expert in range(6) if expert not in KEPT]
    hidden_BTD = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    hidden_BTD[..., 0] = 1.0
    for path, tensor in masked.router_tensors().items():
        rows = tensor.detach() if len(tensor) == 6 else tensor.detach().mT
        if path == source.family.router_rows[0]:
            rows[gone] = 0
            rows[gone, 0] = -1e4
        else:
            rows[gone] = -1e4
    unmasked = block_output(layer_of(source), hidden_BTD)
    pruned.regroup([[expert] for expert in KEPT])
    expected = block_output(masked, hidden_BTD)
    torch.testing.assert_close(block_output(pruned, hidden_BTD), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(unmasked, expected, atol=1e-2)  # the experts that went were in use


@with_experts
def test_cut_and_kept(name: str, source: Checkpoint) -> None:
    """Router rows and biases go with their expert; all else in the layer, shared experts too, stays bit for bit."""
    before, after = layer_of(source), layer_of(source)
    after.regroup([[expert] for expert in KEPT])
    was = before.module.state_dict()
    for path, tensor in after.module.state_dict().items():
        cut = path.removeprefix(f"{before.router_path}.") in source.family.router_rows
        if cut or path.startswith(f"{before.block_path}.experts."):
            index = KEPT if len(was[path]) == 6 else (slice(None), KEPT)
            assert torch.equal(tensor, was[path][index]), path
        else:
            assert torch.equal(tensor, was[path]), path
    lost = sum(t.numel() for t in was.values()) - sum(t.numel() for t in after.module.state_dict().values())
    assert lost == 2 * before.parameters_per_expert()


@with_experts
def test_named_experts_are_read_as_if_the_others_had_been_cut(name: str, source: Checkpoint) -> None:
    """Only they are read from disk, where each has keys of its own; in any order, and into any place."""
    index = moe_layers(source)[-1]
    for experts in (KEPT, [5, 0, 3, 2]):
        cut = layer_of(source)
        cut.regroup([[expert] for expert in KEPT])
        order = [KEPT.index(expert) for expert in experts]
        ours, theirs = source.read_layer(index, experts), cut
        theirs.regroup([[place] for place in order])
        assert ours.num_experts == 4
        assert ours.module.state_dict().keys() == theirs.module.state_dict().keys()
        for path, tensor in theirs.module.state_dict().items():
            assert torch.equal(ours.module.state_dict()[path], tensor), path
    planned = source.read_planned(index, LayerPlan(index, 6, [[expert] for expert in KEPT], KEPT))
    assert torch.equal(planned.experts.down_proj, source.read_layer(index).experts.down_proj[KEPT])


@every_family
@pytest.mark.parametrize("equal", [True, False])
def test_asked_is_counted_and_what_is_written_loads(name: str, source: Checkpoint, equal: bool, tmp_path: Path) -> None:
    """Experts cut in all layers or in the last alone, then half the weights by Wanda: counted on disk, and reloaded."""
    cut = moe_layers(source) if equal else moe_layers(source)[-1:]
    pruner = Wanda(
        attention=True, group="row", pattern="unstructured", inputs="pruned", min_tokens=1, starved="every_token"
    )
    stage = WeightStage(pruner, "decoder")
    writer = CheckpointWriter(source, tmp_path / "written")
    model = load_checkpoint(source.path, CPU)
    stream = walk(source)
    stream.edit = lambda layer: layer.regroup([[e] for e in KEPT]) if layer.index in cut else None
    for step in stream:
        prune_layer_(stage, step, LayerRatios(0.5))
        model.set_submodule(source.paths[step.layer.index], step.layer.module)
        writer.write_layer(step.layer)
    writer.finish()

    written = Checkpoint(tmp_path / "written", None)
    counts = count_written(written, stage, range(written.num_layers))
    assert [count.num_experts for count in counts] == [
        4 if index in cut else number for index, number in enumerate(LAYERS[name])
    ]
    # Wanda rounds each matrix's half to whole weights, and these have an even number.
    assert all(count.zeros == count.weights / 2 for count in counts)
    expected = logits(model, source)
    # Weights that lie elsewhere in memory may take other kernels, which differ in the last digits.
    torch.testing.assert_close(logits(load_checkpoint(written.path, CPU), source), expected, rtol=1e-5, atol=1e-5)
    if equal and name != "nllb-moe":
        assert (logits(stock(written.path, source), source) - expected).abs().max() < 1e-5
        assert written.experts_per_layer is None


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MOE if len(FAMILIES[name].stacks) == 1])
def test_a_whole_run(name: str, runner: Callable[..., dict[str, Any]]) -> None:
    """STUN, which walks for coactivation, then OWL and Wanda: the total is met, and nothing is said of it."""
    # One expert a token, and no two are ever active together: an error of its own.
    lambda2 = 0.0 if name == "llama4_text" else 1.0
    report = runner("expert_pruner.ratio=0.34", f"expert_pruner.lambda2={lambda2}", "sparsity=0.6", family=name)
    assert report["sparsity"]["achieved"] == pytest.approx(0.6, abs=0.001)
    assert report["experts"]["before"] == [count for count in LAYERS[name] if count]
    assert sum(report["experts"]["after"]) < sum(report["experts"]["before"])
    assert not [warning for warning in report["warnings"] if "on disk" in warning]


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE)
def test_a_whole_run_of_a_dense_model(name: str, runner: Callable[..., dict[str, Any]]) -> None:
    """Parts first, all layers equally, then OWL and SparseGPT: the total is met, and stock transformers loads it."""
    coupled = FAMILIES[name].coupled
    heads = "true" if coupled is not None and coupled.heads else "false"
    structured = ("structured_pruner=neurons", f"structured_pruner.heads={heads}", "structured_pruner.budget=per_layer")
    weights = ("expert_pruner=none", "allocation=owl", "unstructured_pruner=sparsegpt", "sparsity=0.6")
    report = runner(*structured, "structured_pruner.ratio=0.2", *weights, "export=hf", family=name)
    assert report["sparsity"]["achieved"] == pytest.approx(0.6, abs=0.001)
    assert report["structure"]["share_removed"] == pytest.approx(0.2, abs=0.03)
    assert report["export"]["loads_with"].startswith("transformers")


@every_family
def test_keys_are_the_owners(name: str, source: Checkpoint, tmp_path: Path) -> None:
    """Unpruned, what is written has the keys and the values of what was read."""
    writer = CheckpointWriter(source, tmp_path / "written")
    for index in range(source.num_layers):
        writer.write_layer(source.read_layer(index))
    writer.finish()
    before = load_file(source.path / "model.safetensors")
    after = {key: t for file in writer.path.glob("*.safetensors") for key, t in load_file(file).items()}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize(
    ("name", "key", "part"),
    [
        ("deepseek_v3", "model.layers.3.mlp.experts.0.gate_proj.weight", "model.layers.3"),
        ("glm4_moe", "model.layers.3.eh_proj.weight", "model.layers.3"),
        ("qwen3_next", "mtp.layers.0.mlp.experts.0.gate_proj.weight", "mtp"),
    ],
)
def test_layers_that_predict_further_tokens_are_named_and_copied(
    name: str, key: str, part: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(copytree(tiny_model(name), tmp_path / "copy"))
    tensors = load_file(folder / "model.safetensors") | {key: torch.ones(3, 5)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint(folder, None)
    assert checkpoint.keys.unused == {part: [key]}
    assert torch.equal(checkpoint.read_rest()[key], torch.ones(3, 5))


def test_a_llama_4_with_two_experts_a_token_is_refused_at_once(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its gates scale the experts' inputs: two experts of a token do not see the same."""
    folder = Path(copytree(tiny_model("llama4_text"), tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text()) | {"num_experts_per_tok": 2}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="num_experts_per_tok=2 in a Llama 4"):
        Checkpoint(folder, None)


def test_experts_of_another_form_are_refused(tiny_model: Callable[[str], Path]) -> None:
    """A tensor that nothing visits must not pass: here one more than is known, then lists of linears."""
    layer = layer_of(Checkpoint(tiny_model("mixtral"), None))
    layer.experts.register_parameter("extra_proj", torch.nn.Parameter(torch.zeros(6, 2, 2)))
    with pytest.raises(ValueError, match=r"layer 2: the experts of mixtral hold .*extra_proj"):
        layer.check()
    layer.block.experts = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    with pytest.raises(ValueError, match=r"layer 2: the experts of mixtral hold 0\.bias"):
        layer.check()


def test_a_linear_that_is_never_called_fails_the_run(tiny_model: Callable[[str], Path]) -> None:
    """Jamba uses the weight of its step size by itself: without inputs Wanda would call all of it worthless."""
    checkpoint = Checkpoint(tiny_model("jamba"), None)
    step = next(iter(walk(checkpoint)))
    object.__setattr__(step.layer, "family", FAMILIES["jamba"].__class__(**vars(FAMILIES["jamba"]) | {"gates": ()}))
    pruner = Wanda(
        attention=True, group="row", pattern="unstructured", inputs="pruned", min_tokens=1, starved="every_token"
    )
    with pytest.raises(ValueError, match=r"layer 0: no calibration token was seen on its way into mamba\.dt_proj"):
        prune_layer_(WeightStage(pruner, "decoder"), step, LayerRatios(0.5))
