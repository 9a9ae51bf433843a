"""A tiny model, its text, and runs of it, made once a session."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from fuzz_world import CACHED, World, result, stun
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Folders to be copied: model, text, run (finished)."""
    home = tmp_path_factory.mktemp("world")
    made = World(home)
    _model(home / "model")
    (home / "text").mkdir()
    rows = torch.randint(0, 64, (8, 20), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [" ".join(f"w{i}" for i in row) for row in rows]
    lines = [{"input_ids": row} if place % 2 else {"text": texts[place]} for place, row in enumerate(rows)]
    (home / "text/text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ended = stun(home / "run", made.values(home))
    assert (ended.code, ended.crash) == (0, ""), ended
    made.results["run"] = result(home / "run")
    ended = stun(home / "cached", made.values(home) | {"cache.path": str(home / "cache")}, CACHED)
    assert (ended.code, ended.crash) == (0, ""), ended
    return made


def _model(folder: Path) -> None:
    """Writes the tiny Mixtral with two layers, in several files."""
    spec = spec_from_file_location("tiny", Path(__file__).parents[1] / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    tiny = module_from_spec(spec)
    spec.loader.exec_module(tiny)
    torch.manual_seed(0)
    config = tiny.tiny_config("mixtral")
    config.num_hidden_layers = 2
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size="40KB")
    tiny.tokenizer().save_pretrained(folder)
