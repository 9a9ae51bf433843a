"""What `make clients` does by itself; the programs that it asks are not here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from scripts.clients.__main__ import _keep
from scripts.clients.ask import ASK, Answer, Reference, Refused, verdict
from scripts.clients.cases import exchange_experts
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.writer import CheckpointWriter

GREEDY = {"bfloat16": ["a", "b"], "float32": ["a", "c"]}
KNOWN = Reference(Path(), "bfloat16", [], [[1], [2]], torch.zeros(1, 4), torch.full((1, 4), 0.01), GREEDY, 0)


def row(model: str, client: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "export": "equal", "dtype": "float32", "client": client, "proven": None, **more}


def test_two_experts_of_the_last_layer_are_exchanged_and_nothing_else(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    source = Checkpoint(tiny_model("qwen3_moe"), None)
    writer = CheckpointWriter(source, tmp_path / "right")
    for index in range(source.num_layers):
        writer.write_layer(source.read_layer(index))
    writer.finish()
    wrong = exchange_experts(writer.path, tmp_path / "wrong")
    before, after = ({k: t for f in sorted(d.glob("*.safetensors")) for k, t in load_file(f).items()}
                     for d in (writer.path, wrong))  # fmt: skip
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert before.keys() == after.keys()
    assert {key.split(".experts.")[1][0] for key in changed} == {"0", "1"}
    assert {key.split(".mlp.")[0] for key in changed} == {"model.layers.2"}
    assert all(torch.equal(before[key], after[key.replace("experts.0.", "experts.1.")])
               for key in changed if ".experts.0." in key)  # fmt: skip


@pytest.mark.parametrize(
    ("apart", "dtype", "proven"),
    [(0.019, "bfloat16", True), (0.03, "bfloat16", False), (0.019, "float32", False), (0.0009, "float32", True)],
)
def test_a_client_is_proven_within_twice_the_rounding_of_what_it_computes_in(
    apart: float, dtype: str, proven: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Answer(torch.full((1, 4), apart), ["a", "c"], dtype, {"x": "1"})
    monkeypatch.setitem(ASK, "x", lambda known: answer)
    found = verdict("x", KNOWN)
    assert found["proven"] is proven
    assert (found["greedy_equal"], found["prompts"]) == (1 if dtype == "bfloat16" else 2, 2)


def test_a_client_that_does_not_run_a_model_is_neither_proven_nor_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(known: Reference) -> Answer:
        raise Refused("has no such class")

    monkeypatch.setitem(ASK, "x", refuse)
    assert verdict("x", KNOWN) == {"client": "x", "proven": None, "because": "has no such class"}


def test_what_was_found_of_other_models_stays(tmp_path: Path) -> None:
    _keep(tmp_path, [row("qwen3_moe", "vLLM", because="old")], [])
    _keep(tmp_path, [row("toy_moe", "vLLM", because="new")], [{"method": "gptq", "because": "none"}])
    _keep(tmp_path, [row("qwen3_moe", "vLLM", because="newer", versions={"vllm": "0.32.0"})], [])
    content = json.loads((tmp_path / "clients.json").read_text())
    assert [(one["model"], one["because"]) for one in content["clients"]] == [
        ("toy_moe", "new"),
        ("qwen3_moe", "newer"),
    ]
    assert content["quantized"] == [{"method": "gptq", "because": "none"}]
    assert content["versions"]["vllm (vLLM)"] == "0.32.0"
    assert "| qwen3_moe | equal | float32 | vLLM | - | not run: newer |" in (tmp_path / "clients.md").read_text()
