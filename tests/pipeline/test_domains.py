"""Which domains the removed experts served: by hand, and in a run against a stock model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from row_files import write_rows
from transformers import AutoModelForCausalLM

from stun_exp.moe.plan import keep
from stun_exp.moe.statistics import DomainUsage
from stun_exp.pipeline.domains import DomainLoad, LayerDomains, domains_json, domains_of_batches, layer_domains
from stun_exp.report.data.schema import why_unusable

Runner = Callable[..., dict[str, Any]]
EXPERTS_ALONE = ("unstructured_pruner=none", "sparsity=${expert_pruner.ratio}", "expert_pruner.ratio=0.34")
LENGTH, NUMBER = 16, 6


def test_domains_are_those_of_the_batches_that_are_run() -> None:
    """The last batch is not run: the sequences of those before it are counted alone."""
    found = domains_of_batches(["a", "b", "a", "b", "b"], [torch.zeros(2, 3), torch.zeros(2, 3)])
    assert (found.names, found.numbers) == (["a", "b"], [[0, 1], [0, 1]])
    assert found.tokens == {"a": 6, "b": 6}
    assert domains_of_batches([], [torch.zeros(2, 3)]).names == []


def test_what_went_is_told_by_the_original_numbers() -> None:
    usage = DomainUsage(3, 2, [[0, 1]])
    usage.routing(torch.empty(0), torch.tensor([[0], [2]]), torch.tensor([[0.5], [0.25]]))
    layer = layer_domains(keep(4, 3, [1]), ["a", "b"], usage)
    assert (layer.layer, layer.removed) == (4, [0, 2])
    assert layer.choices == {"a": [1, 0, 0], "b": [0, 0, 1]}
    assert layer.gates == {"a": [0.5, 0.0, 0.0], "b": [0.0, 0.0, 0.25]}


def test_shares_over_layers_by_hand() -> None:
    """Expert 1 goes from one layer, 0 from another: `a` chose these 3 + 1 times, `b` 1 + 5 times."""
    layers = [
        LayerDomains(0, [1], {"a": [9, 3], "b": [9, 1]}, {"a": [9.0, 1.0], "b": [9.0, 1.0]}),
        LayerDomains(2, [0], {"a": [1, 9], "b": [5, 9]}, {"a": [0.0, 9.0], "b": [2.0, 9.0]}),
    ]
    found = domains_json(["a", "b", "b"], DomainLoad({"a": 30, "b": 10}, layers))
    assert found is not None
    assert found["sources"]["a"] == {"sequences": 1, "tokens": 0.75, "removed_choices": 0.4, "removed_gates": 0.25}
    assert found["sources"]["b"] == {"sequences": 2, "tokens": 0.25, "removed_choices": 0.6, "removed_gates": 0.75}


def test_what_was_not_measured_or_is_not_finite_has_no_share() -> None:
    unmeasured = domains_json(["a"], None)
    assert unmeasured is not None
    assert unmeasured["sources"]["a"] == {
        "sequences": 1, "tokens": None, "removed_choices": None, "removed_gates": None
    }  # fmt: skip
    nan = LayerDomains(0, [0], {"a": [0]}, {"a": [float("nan")]})
    found = domains_json(["a"], DomainLoad({"a": 30}, [nan]))
    assert found is not None
    assert found["sources"]["a"]["removed_choices"] is found["sources"]["a"]["removed_gates"] is None
    assert domains_json([], None) is None


@pytest.fixture
def mixed(tmp_path: Path, run_with: Runner, tiny_model: Callable[[str], Path]) -> Runner:
    """A run on four sequences of `low` words and two of `high` ones, two in a batch."""
    generator = torch.Generator().manual_seed(0)
    for name, first in (("low", 1), ("high", 32)):
        ids = torch.randint(first, first + 30, (8, LENGTH), generator=generator).tolist()
        write_rows(tmp_path / f"{name}.jsonl", [{"input_ids": row} for row in ids])
    without_toy = ["calibration.weights.toy=0", "calibration.weights.toy_maths=0"]
    size = [f"calibration.num_sequences={NUMBER}", f"calibration.sequence_length={LENGTH}", "calibration.batch_size=2"]

    def go(*overrides: str, family: str = "mixtral", low: str = "low", out: Path = tmp_path / "run") -> dict[str, Any]:
        sources = [f"model.path={tiny_model(family)}", "calibration=mixture", *without_toy, *size]
        for name, file, weight in ((low, "low", 2), ("high", "high", 1)):
            sources.append(f"+calibration@calibration.sources.{name}=local")
            sources.append(f"calibration.sources.{name}.path={tmp_path / file}.jsonl")
            sources.append(f"+calibration.weights.{name}={weight}")
        return run_with(out, *sources, *overrides)

    return go


@torch.no_grad()
def test_a_run_counts_what_a_stock_model_routes(
    mixed: Runner, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    report, folder = mixed(*EXPERTS_ALONE), tiny_model("mixtral")
    rows = {
        name: [json.loads(line)["input_ids"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("low", "high")
    }
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())["layers"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    blocks = [layer.mlp for layer in model.model.layers]
    inputs: dict[int, torch.Tensor] = {}
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda module, args, n=number: inputs.update({n: args[0].flatten(0, 1)}))
    removed = dict.fromkeys(rows, 0.0)
    for name, count in (("low", 4), ("high", 2)):
        model(torch.tensor(rows[name][:count]))
        for number, block in enumerate(blocks):
            gates_TK, index_TK = (inputs[number] @ block.gate.weight.T).softmax(-1).topk(2)
            gates_TK = gates_TK / gates_TK.sum(1, keepdim=True)
            found = report["domains"]["per_layer"][number]
            assert found["choices"][name] == index_TK.flatten().bincount(minlength=6).tolist()
            expected = torch.zeros(6).index_add(0, index_TK.flatten(), gates_TK.flatten())
            torch.testing.assert_close(torch.tensor(found["gates"][name]), expected, rtol=1e-4, atol=1e-5)
            gone = sorted(set(range(6)) - set(plan[number]["kept"]))
            assert found["removed"] == gone
            removed[name] += int(torch.isin(index_TK, torch.tensor(gone)).sum())
    for name, count in (("low", 4), ("high", 2)):
        source = report["domains"]["sources"][name]
        assert source["sequences"] == count
        assert source["tokens"] == pytest.approx(count / NUMBER)
        assert source["removed_choices"] == pytest.approx(removed[name] / sum(removed.values()))


@pytest.mark.parametrize("family", ["deepseek_v3", "llama4_text", "qwen3_moe"])
def test_domains_add_up_to_the_usage_of_any_router(mixed: Runner, family: str) -> None:
    """The share of gates that moved is counted apart, expert by expert as they are run."""
    report = mixed(*EXPERTS_ALONE, family=family)
    moved = {layer["layer"]: layer["gate_mass_moved"] for layer in report["expert_stage"]["per_layer"]}
    for layer in report["domains"]["per_layer"]:
        gates = [sum(values) for values in zip(*layer["gates"].values(), strict=True)]
        share = sum(gates[expert] for expert in layer["removed"]) / sum(gates)
        assert share == pytest.approx(moved[layer["layer"]], rel=1e-4)


def test_a_mixture_names_what_each_source_gave_where_nothing_is_measured(mixed: Runner, tmp_path: Path) -> None:
    report = mixed("expert_pruner=none")
    assert {name: one["sequences"] for name, one in report["domains"]["sources"].items()} == {"low": 4, "high": 2}
    assert report["domains"]["per_layer"] == []
    assert why_unusable(report) is None
    assert why_unusable({key: value for key, value in report.items() if key != "domains"}) is None


def test_sources_of_other_names_are_not_taken_from_the_cache(mixed: Runner, tmp_path: Path) -> None:
    """The tokens are the same, and what was counted of them is not."""
    cache = ("cache=folder", f"cache.path={tmp_path / 'cache'}")
    first = mixed(*EXPERTS_ALONE, *cache, out=tmp_path / "a")
    again = mixed(*EXPERTS_ALONE, *cache, low="few", out=tmp_path / "b")
    sha256 = "calibration_tokens_sha256"
    assert again["provenance"][sha256] == first["provenance"][sha256]
    assert mixed(*EXPERTS_ALONE, *cache, out=tmp_path / "c")["domains"] == first["domains"]
    assert set(again["domains"]["sources"]) == set(again["domains"]["per_layer"][0]["choices"]) == {"few", "high"}
