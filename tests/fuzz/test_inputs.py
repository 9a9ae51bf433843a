"""Whatever is wrong with a file that a run reads is said in a line before anything is pruned, or changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from fuzz_mutants import damaged_json, damaged_lines, damaged_weights, no_file
from fuzz_world import CASES, SEED, World, as_anybody, complaint, everything, pruned, result, stun

Damage = Callable[[Random, Path], str]


def rewritten(change: Callable[[Random, bytes], tuple[bytes, str]]) -> Damage:
    def damage(random: Random, file: Path) -> str:
        content, what = change(random, file.read_bytes())
        file.write_bytes(content)
        return what

    return damage


JSON = rewritten(damaged_json)
CATEGORIES: dict[str, tuple[Damage, str]] = {
    "config": (JSON, "model/config.json"),
    "index": (JSON, "model/model.safetensors.index.json"),
    "tokenizer": (JSON, "model/tokenizer.json"),
    "tokenizer_config": (JSON, "model/tokenizer_config.json"),
    "generation_config": (JSON, "model/generation_config.json"),
    "weights": (damaged_weights, "model/*.safetensors"),
    "text": (rewritten(damaged_lines), "text/text.jsonl"),
    "files": (no_file, "[mt]*/*"),
}


def case(world: World, at: Path, category: str, number: int) -> str:
    """What is wrong with how one case went; "" if nothing."""
    random = Random(f"{SEED} {category} {number}")
    world.copy(at, "model", "text")
    damage, pattern = CATEGORIES[category]
    file = random.choice(sorted(at.glob(pattern)))
    what = f"{file.name}: {damage(random, file)}"
    before, out = everything(at), at / "out"
    with as_anybody():
        ended = stun(out, world.values(at))
    named = (file.name, str(file.parent), "model.path=", "calibration.path=")
    why = complaint(ended, before, everything(at), named)
    if not why and ended.code and pruned(out):
        why = "refused after the weights were begun"
    said = "".join(ended.lines)
    told = file.name in said or "is on disk but not run" in said  # a tensor, which is then named
    if not why and not ended.code and not told and result(out) != world.results["run"]:
        why = "" if is_another(category, what, file) else "taken for another, without a word"
    return f"{what}\n  {why}\n  {ended.said}" if why else ""


def is_another(category: str, what: str, file: Path) -> bool:
    """Whether a damaged file is as good as the one it was: nobody can know that something else was meant.

    What is not said in JSON has its default, a word may be missing in a vocabulary, and a number may be another.
    """
    if category == "text":
        return is_text(file)
    if category == "weights":  # norms and routers are often kept in another precision than the rest
        return "float" in what and ("norm" in what or ".gate." in what)
    if not file.is_file():
        return what.endswith(": gone")  # of files that a model may do without
    less = what.partition(": ")[2].startswith(("delete", "rename", "like")) or file.read_bytes() == b"{}"
    return file.suffix == ".json" and less


def is_text(file: Path) -> bool:
    """Whether each line is text, or tokens of the model's: another text then, and no fault."""
    try:
        rows = [json.loads(line) for line in file.read_text().split("\n") if line.strip()]
        return all(isinstance(row["text"], str) if "text" in row else _are_tokens(row["input_ids"]) for row in rows)
    except (ValueError, TypeError, KeyError):
        return False


def _are_tokens(ids: list[object]) -> bool:
    return all(type(i) is int and 0 <= i < 64 for i in ids)


@pytest.mark.parametrize("number", range(CASES))
@pytest.mark.parametrize("category", CATEGORIES)
def test_a_damaged_input(world: World, tmp_path: Path, category: str, number: int) -> None:
    assert case(world, tmp_path, category, number) == ""
